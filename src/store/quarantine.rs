//! Records that cannot be read: kept byte for byte beside the others, with the reason, until somebody has looked.

use serde::{Deserialize, Serialize};

use super::format::{self, Kind};
use super::{Error, Unreadable, hex};
use crate::ids::SandboxId;
use crate::net::Slot;

/// A record in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The tree it was found in.
    pub tree: String,
    /// Its key there.
    #[serde(with = "hex")]
    pub key: Vec<u8>,
    /// Its bytes.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
    /// Why it cannot be read.
    pub reason: String,
    /// When it was moved, in milliseconds since 1970.
    pub at: u64,
}

impl Quarantined {
    /// Under which key it is kept: tree and key as a person can type them, and a number where there are several.
    pub fn name(&self, nth: u32) -> String {
        let name = format!("{}/{}", self.tree, self.key.escape_ascii());
        if nth == 0 { name } else { format!("{name}+{nth}") }
    }

    /// Whether it holds the same bytes of the same place: a move that was cut off is then only finished.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.tree, &self.key, &self.bytes) == (&other.tree, &other.key, &other.bytes)
    }

    /// The kind it was taken for.
    pub fn kind(&self) -> Option<Kind> {
        Kind::of_tree(&self.tree)
    }

    /// What is kept of its sandboxes meanwhile: one entry for the sandbox of the key and one for that which the record
    /// itself names, if it is another. `name` is its key in the quarantine.
    pub fn reserved(&self, name: &str) -> Vec<Unreadable> {
        let reason = format!(
            "{}; it is kept in quarantine: look at it with: runner-ch store quarantine show {name}",
            self.reason
        );
        unreadable(self.kind(), &self.key, &self.bytes, &reason)
    }
}

/// What is still legible of a record that cannot be read as a whole. Its slot must not be given to somebody else.
pub(super) fn unreadable(kind: Option<Kind>, key: &[u8], bytes: &[u8], reason: &str) -> Vec<Unreadable> {
    let entry = |sandbox, slot| Unreadable { sandbox, slot, reason: reason.to_owned() };
    if kind != Some(Kind::Sandbox) {
        return vec![entry(None, None)];
    }
    let fields: serde_json::Value =
        bytes.get(1..).and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default();
    let slot: Option<Slot> = serde_json::from_value(fields["slot"].clone()).ok();
    let named: Option<SandboxId> = std::str::from_utf8(key).ok().and_then(|key| key.parse().ok());
    let inside: Option<SandboxId> = fields["id"].as_str().and_then(|id| id.parse().ok());
    let mut found = vec![entry(named.clone(), slot)];
    if inside.is_some() && inside != named {
        found.push(entry(inside, None));
    }
    found
}

/// Reads an entry of the quarantine.
///
/// # Errors
/// It cannot be read itself.
pub(super) fn parse(name: &[u8], bytes: &[u8]) -> Result<Quarantined, Error> {
    let newest = format::upgraded(Kind::Quarantine, name, bytes)?;
    format::parse(Kind::Quarantine, name, newest.as_deref().unwrap_or(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &[u8], bytes: &[u8]) -> Quarantined {
        let (key, bytes) = (key.to_owned(), bytes.to_owned());
        Quarantined { tree: "sandboxes".into(), key, bytes, reason: "broken".into(), at: 1 }
    }

    #[test]
    fn what_is_legible_stays_reserved() {
        let found = record(b"box", b"\x02{\"id\":\"box\",\"slot\":7,\"phase\":\"moon\"}").reserved("sandboxes/box");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].sandbox.as_ref().map(SandboxId::as_str), found[0].slot), (Some("box"), Some(Slot(7))));
        assert!(found[0].reason.contains("broken") && found[0].reason.ends_with("show sandboxes/box"));
    }

    #[test]
    fn both_names_of_a_misplaced_record_are_reserved() {
        let found = record(b"box", b"\x02{\"id\":\"other\",\"slot\":7}").reserved("x");
        let names: Vec<_> = found.iter().map(|one| one.sandbox.as_ref().unwrap().as_str()).collect();
        assert_eq!(names, ["box", "other"]);
        assert_eq!((found[0].slot, found[1].slot), (Some(Slot(7)), None));
    }

    #[test]
    fn bytes_without_any_meaning_reserve_their_key() {
        let found = record(b"box", b"\xff\xff").reserved("x");
        assert_eq!((found.len(), found[0].slot), (1, None));
        assert!(record(b"\xff", b"").reserved("x")[0].sandbox.is_none());
    }

    #[test]
    fn names_can_be_typed() {
        assert_eq!(record(b"box", b"").name(0), "sandboxes/box");
        assert_eq!(record(b"a\n", b"").name(2), "sandboxes/a\\n+2");
    }
}
