//! Leaves null members out of JSON text, keeping the order of the rest (v53: cloud-hypervisor.md 10).

/// Copies JSON text produced by serde without the object members whose value is `null`.
pub fn without_nulls(json: &str) -> String {
    let bytes = json.as_bytes();
    let mut kept = String::with_capacity(json.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'"' {
            kept.push(bytes[at] as char);
            at += 1;
            continue;
        }
        let end = string_end(bytes, at);
        if json[end..].starts_with(":null") {
            at = end + ":null".len();
            at += drop_comma(&mut kept, bytes.get(at));
        } else {
            kept.push_str(&json[at..end]);
            at = end;
        }
    }
    kept
}

/// Index after the closing quote of the string that starts at `start`.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// Removes the comma that belonged to the dropped member; returns how many input bytes that consumed.
fn drop_comma(kept: &mut String, next: Option<&u8>) -> usize {
    if next == Some(&b',') {
        return 1;
    }
    if kept.ends_with(',') {
        kept.pop();
    }
    0
}

#[cfg(test)]
mod tests {
    use super::without_nulls;

    #[test]
    fn null_members_vanish_in_every_position() {
        for (given, wanted) in [
            (r#"{"a":null,"b":1}"#, r#"{"b":1}"#),
            (r#"{"b":1,"a":null}"#, r#"{"b":1}"#),
            (r#"{"b":1,"a":null,"c":{"x":null}}"#, r#"{"b":1,"c":{}}"#),
            (r#"{"a":null}"#, "{}"),
            (r#"[null,{"n":"a:null,\"b\":null"}]"#, r#"[null,{"n":"a:null,\"b\":null"}]"#),
            (r#"{"ü":"ö","x":null,"y":null}"#, r#"{"ü":"ö"}"#),
        ] {
            assert_eq!(without_nulls(given), wanted);
        }
    }
}
