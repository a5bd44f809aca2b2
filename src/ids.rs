//! Identifiers that come from outside, parsed once into types that are safe to put into paths, link
//! names and log lines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a usable identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is empty.
    #[error("{kind} is empty; expected 1 to {max} characters")]
    Empty {
        /// What was being parsed.
        kind: &'static str,
        /// Longest accepted length in bytes.
        max: usize,
    },
    /// The text is longer than anything that is handed out.
    #[error("{kind} has {len} bytes; at most {max} are accepted")]
    TooLong {
        /// What was being parsed.
        kind: &'static str,
        /// Length found, in bytes.
        len: usize,
        /// Longest accepted length in bytes.
        max: usize,
    },
    /// A character that could change the meaning of a path, a name or a log line.
    #[error("{kind} has {character:?} at byte {at}; accepted are {accepted}")]
    Character {
        /// What was being parsed.
        kind: &'static str,
        /// The offending character.
        character: char,
        /// Its offset in bytes.
        at: usize,
        /// What would have been accepted.
        accepted: &'static str,
    },
    /// A path segment that would leave its directory, or an empty one.
    #[error("{kind} has the path segment {segment:?}; empty segments and those starting with '.' are refused")]
    Segment {
        /// What was being parsed.
        kind: &'static str,
        /// The offending segment.
        segment: String,
    },
}

fn check(
    kind: &'static str,
    text: &str,
    max: usize,
    accepted: &'static str,
    ok: impl Fn(usize, char) -> bool,
) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::Empty { kind, max });
    }
    if text.len() > max {
        return Err(Error::TooLong { kind, len: text.len(), max });
    }
    match text.char_indices().find(|&(at, character)| !ok(at, character)) {
        Some((at, character)) => Err(Error::Character { kind, character, at, accepted }),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                let parse: fn(&str) -> Result<(), Error> = $parse;
                parse(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

const NAME: &str = "letters, digits, '-' and '_', the first one a letter or a digit";

fn name_char(at: usize, c: char) -> bool {
    c.is_ascii_alphanumeric() || (at > 0 && (c == '-' || c == '_'))
}

id!(
    /// A sandbox: 1 to 64 characters of `[A-Za-z0-9_-]`, the first alphanumeric. The API hands out
    /// UUIDs (PROTOCOL.md 2.1); the wider form keeps hand-made names usable.
    SandboxId,
    |text| check("sandbox id", text, 64, NAME, name_char)
);

id!(
    /// A job of the control plane: same alphabet as [`SandboxId`].
    JobId,
    |text| check("job id", text, 64, NAME, name_char)
);

id!(
    /// A Linux link name: 1 to 15 characters of `[A-Za-z0-9_.-]`, the first alphanumeric.
    LinkName,
    |text| check("link name", text, 15, "letters, digits, '-', '_' and '.', the first one a letter or a digit", |at, c| {
        name_char(at, c) || (at > 0 && c == '.')
    })
);

id!(
    /// A network namespace's name below /run/netns: 1 to 80 characters of `[A-Za-z0-9_-]`.
    NetnsName,
    |text| check("namespace name", text, 80, NAME, name_char)
);

impl SandboxId {
    /// The namespace of this sandbox: `ns-{id}`, as operators of the original know it.
    pub fn netns(&self) -> NetnsName {
        NetnsName(format!("ns-{}", self.0))
    }
}

id!(
    /// A snapshot reference: up to 16 segments joined by `/`, at most 512 bytes in all. Names come
    /// from users nearly unfiltered (PROTOCOL.md 5), so everything that could leave the snapshot
    /// directory is refused here and never reaches a path.
    SnapshotRef,
    |text| {
        const KIND: &str = "snapshot";
        check(KIND, text, 512, "letters, digits and '_', '-', '.', ':', '@', '+', '%' in segments joined by '/'", |at, c| {
            c.is_ascii_alphanumeric() || "_-.:@+/".contains(c) || (c == '%' && escapes(text, at))
        })?;
        let mut count = 0;
        for segment in text.split('/') {
            count += 1;
            if segment.is_empty() || segment.starts_with('.') || count > 16 || segment.len() > 255 {
                return Err(Error::Segment { kind: KIND, segment: segment.to_owned() });
            }
        }
        Ok(())
    }
);

impl SnapshotRef {
    /// The reference that stands for these texts, one segment each. What a segment cannot hold is percent-encoded, so
    /// two different names never have the same reference, and none leads anywhere.
    ///
    /// # Errors
    /// A text that is empty or, encoded, longer than a segment may be.
    pub fn of<'a>(segments: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let encoded: Vec<String> = segments.into_iter().map(encode).collect();
        encoded.join("/").parse()
    }
}

/// Whether a `%` begins an escape as [`SnapshotRef::of`] writes it: two upper-case hex digits. It is never decoded.
fn escapes(text: &str, at: usize) -> bool {
    let digits = text.as_bytes().get(at + 1..at + 3);
    digits.is_some_and(|digits| digits.iter().all(|digit| digit.is_ascii_digit() || (b'A'..=b'F').contains(digit)))
}

fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for (at, byte) in text.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || b"_-:@+".contains(&byte) || (byte == b'.' && at > 0);
        if plain {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_sandbox_ids() {
        for id in ["a", "0", "box_1", "6f1c2f0e-8f0a-4c51-8a5e-8b2f5b1f9f11", &"x".repeat(64)] {
            assert_eq!(id.parse::<SandboxId>().unwrap().as_str(), id);
        }
    }

    #[test]
    fn bad_sandbox_ids() {
        let long = "x".repeat(10_000);
        for id in
            ["", "-a", "_a", ".", "..", "a/b", "../x", "a\0b", "a'b", "a\"b", "$(id)", "a\nb", "ä", "a b", "a.b", &long]
        {
            assert!(id.parse::<SandboxId>().is_err(), "{id:?} must be refused");
        }
    }

    #[test]
    fn serde_goes_through_the_parser() {
        assert!(serde_json::from_str::<SandboxId>("\"../etc\"").is_err());
        assert_eq!(serde_json::from_str::<SandboxId>("\"ok\"").unwrap().as_str(), "ok");
    }

    #[test]
    fn snapshot_refs_cannot_leave_their_directory() {
        for good in ["ubuntu-base.1", "org/name", "reg.local:5000/daytona/ubuntu:22.04", "org/my%20snap"] {
            assert!(good.parse::<SnapshotRef>().is_ok(), "{good:?} must be accepted");
        }
        for bad in [
            "",
            "/",
            "/etc",
            "a//b",
            "a/../b",
            "..",
            ".",
            "a/.hidden",
            "a b",
            "a$b",
            "a\0",
            "a%2fb",
            "a%",
            "a%2",
            "a%zz",
            &"a/".repeat(40),
        ] {
            assert!(bad.parse::<SnapshotRef>().is_err(), "{bad:?} must be refused");
        }
    }
}
