//! From each format of a record to the next one: pure, on JSON, in order. The format of a kind is one more than the
//! number of its steps, so a step cannot be forgotten when the number is raised.

use serde_json::{Map, Value, json};

use super::format::Kind;

/// Turns a record of one format into one of the next, or says what it does not have.
type Step = fn(&mut Map<String, Value>) -> Result<(), String>;

const SANDBOX: &[Step] = &[sandbox_to_2];
const JOB: &[Step] = &[];
const QUARANTINE: &[Step] = &[];

const fn steps(kind: Kind) -> &'static [Step] {
    match kind {
        Kind::Sandbox => SANDBOX,
        Kind::Job => JOB,
        Kind::Quarantine => QUARANTINE,
    }
}

/// The format that this version writes for a kind of record.
pub const fn newest(kind: Kind) -> u8 {
    // A table of more than 254 steps would not compile into a byte-sized number; there will be none.
    1 + steps(kind).len() as u8
}

/// Brings a record of format `from` (1 to [`newest`]) to the newest format.
///
/// # Errors
/// What the record lacks, in words.
pub fn upgrade(kind: Kind, from: u8, record: Value) -> Result<Value, String> {
    let done = from.checked_sub(1).map(usize::from).ok_or("there is no format 0")?;
    let todo = steps(kind).get(done..).ok_or_else(|| format!("format {from} is not known here"))?;
    let Value::Object(mut fields) = record else { return Err("it is no JSON object".to_owned()) };
    for step in todo {
        step(&mut fields)?;
    }
    Ok(Value::Object(fields))
}

/// Format 1 came before private memory and before copies: a VM without `layout` has shared memory, and no run had
/// anything to tell of its beginning. Both are explicit from here on.
fn sandbox_to_2(record: &mut Map<String, Value>) -> Result<(), String> {
    let vmm = record.get("vmm").ok_or("it has no field vmm")?;
    if !vmm.is_null() && record.get("layout").is_none_or(Value::is_null) {
        record.insert("layout".to_owned(), json!({ "layout": "shared" }));
    }
    record.entry("begin").or_insert_with(|| json!({ "warm": false }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_only_where_a_vm_without_layout_is() {
        let layout = |record: Value| upgrade(Kind::Sandbox, 1, record).unwrap()["layout"].clone();
        let shared = json!({ "layout": "shared" });
        assert_eq!(layout(json!({ "vmm": { "version": "v50.0" } })), shared);
        assert_eq!(layout(json!({ "vmm": { "version": "v50.0" }, "layout": null })), shared);
        assert_eq!(layout(json!({ "vmm": null })), Value::Null);
        let private = json!({ "layout": "private", "path": "/m" });
        assert_eq!(layout(json!({ "vmm": { "version": "v53.0" }, "layout": private })), private);
    }

    #[test]
    fn what_a_run_began_with_is_kept() {
        let begin = json!({ "warm": true, "mapped": 1 });
        let upgraded = upgrade(Kind::Sandbox, 1, json!({ "vmm": null, "begin": begin })).unwrap();
        assert_eq!(upgraded["begin"], begin);
        assert_eq!(upgrade(Kind::Sandbox, 1, json!({ "vmm": null })).unwrap()["begin"], json!({ "warm": false }));
    }

    #[test]
    fn a_record_of_the_newest_format_is_left_alone() {
        for kind in [Kind::Sandbox, Kind::Job, Kind::Quarantine] {
            let record = json!({ "anything": 1 });
            assert_eq!(upgrade(kind, newest(kind), record.clone()).unwrap(), record);
        }
    }

    #[test]
    fn what_is_no_record_is_refused_in_words() {
        for (from, record, words) in [
            (0, json!({}), "format 0"),
            (newest(Kind::Sandbox) + 1, json!({}), "not known"),
            (1, json!([]), "no JSON object"),
            (1, json!({ "phase": "started" }), "vmm"),
        ] {
            let reason = upgrade(Kind::Sandbox, from, record).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        }
    }
}
