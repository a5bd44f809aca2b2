//! Error bodies in the forms that exist (cloud-hypervisor.md 2.2): an array of strings, the HTTP
//! library's object with a raw newline in its text, and plain text before v47.

use serde::Deserialize;

/// Longest text that is kept, in characters.
const LONGEST: usize = 4096;

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// The hypervisor's own words, outermost first; empty when it said nothing.
pub fn of(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    if let Ok(words) = serde_json::from_str::<Vec<String>>(&text) {
        return words;
    }
    // A control character inside a string is not valid JSON; between tokens a space does the same.
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    if let Ok(refusal) = serde_json::from_str::<Refusal>(&printable) {
        return vec![refusal.error.trim().to_owned()];
    }
    let plain = printable.trim();
    if plain.is_empty() { Vec::new() } else { vec![plain.to_owned()] }
}

/// The beginning of a body, for an error text.
pub fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_that_exist() {
        let cases: [(&str, &[&str]); 5] = [
            (r#"["Error from API","VM is not running"]"#, &["Error from API", "VM is not running"]),
            ("Error from API: VM is not created\n", &["Error from API: VM is not created"]),
            (
                "{ \"error\": \"Invalid header.\nAll previous unanswered requests will be dropped.\" }",
                &["Invalid header. All previous unanswered requests will be dropped."],
            ),
            ("{ \"error\": \"Too many open connections\" }", &["Too many open connections"]),
            ("", &[]),
        ];
        for (body, expected) in cases {
            assert_eq!(of(body.as_bytes()), expected, "{body:?}");
        }
        assert_eq!(of(&[0xff, b'a']), ["\u{fffd}a"]);
        assert!(of("x".repeat(100_000).as_bytes())[0].len() <= LONGEST);
    }
}
