//! The hypervisor's version and what each version can do (cloud-hypervisor.md 10).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Error;

/// Oldest supported major version.
pub const OLDEST: u32 = 44;
/// Newest major version this code was written for; newer ones are accepted with a warning.
pub const NEWEST: u32 = 53;

/// A Cloud Hypervisor version. Keeps the text it was made from, because builds between releases
/// (`v54.0-12-gabc`) must stay tellable from the release when a snapshot is matched to its binary.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
    text: String,
}

impl Version {
    /// Reads `v53.0`, `53.0.0`, `v54.0-12-gabc` and the like: major and minor, an optional patch
    /// number, and anything after `-` or `+`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = || Error::VersionSyntax { text: text.chars().take(80).collect() };
        let text = text.trim();
        let bare = text.strip_prefix('v').unwrap_or(text);
        let numbers = bare.split(['-', '+']).next().unwrap_or_default();
        let mut parts = numbers.split('.').map(number);
        let major = parts.next().flatten().ok_or_else(bad)?;
        let minor = parts.next().flatten().ok_or_else(bad)?;
        let patch = parts.next().unwrap_or(Some(0)).ok_or_else(bad)?;
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self { major, minor, patch, text: text.to_owned() })
    }

    /// Major version, the 53 of v53.0.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Refuses versions that are too old; warns about those nobody has tried.
    pub fn check_supported(&self) -> Result<(), Error> {
        if self.major < OLDEST {
            return Err(Error::VersionTooOld { found: self.text.clone() });
        }
        if self.major > NEWEST {
            tracing::warn!(version = %self, newest_known = NEWEST, "Cloud Hypervisor is newer than this runner knows");
        }
        Ok(())
    }

    /// Disks have `image_type`; without it raw images are probed and their first sector is
    /// write-protected (v51, cloud-hypervisor.md 6).
    pub fn image_type(&self) -> bool {
        self.major >= 51
    }

    /// Disks have `backing_files`, off by default (v51). Older versions follow backing files unasked.
    pub fn backing_files(&self) -> bool {
        self.major >= 51
    }

    /// `--no-shutdown`: the process outlives a guest power-off (v52).
    pub fn no_shutdown_flag(&self) -> bool {
        self.major >= 52
    }

    /// `vm.restore` has `resume` and `memory_restore_mode` (v52).
    pub fn restore_resume(&self) -> bool {
        self.major >= 52
    }

    /// Errors are JSON arrays of strings (v47); before, plain text.
    pub fn json_errors(&self) -> bool {
        self.major >= 47
    }

    /// A stale API socket is replaced at start and a `.lock` file is kept beside it (v53).
    pub fn stale_socket_replaced(&self) -> bool {
        self.major >= 53
    }

    /// A snapshot of shared memory holds the touched pages only (v52).
    pub fn sparse_shared_snapshot(&self) -> bool {
        self.major >= 52
    }

    /// Guest memory can be a private mapping of a frozen file, and a saved VM can be restored on one (v51:
    /// memory zones take files that cannot be written, cloud-hypervisor.md 5.4).
    pub fn private_map(&self) -> bool {
        self.major >= 51
    }

    /// `vm.pause` writes cached qcow2 tables out (#8607, after v53). Until then a copy of a paused VM's qcow2
    /// image lacks acknowledged writes (cloud-hypervisor.md 6). Builds between v53.0 and the next release may
    /// have it or not, so they count as without.
    pub fn flushes_on_pause(&self) -> bool {
        self.major > 53
    }

    /// `vm.restore` takes TAP descriptors through `net_fds` (v40, so every supported version).
    pub fn net_fds(&self) -> bool {
        self.major >= 40
    }

    /// Disks have `lock_granularity` (v52).
    pub fn lock_granularity(&self) -> bool {
        self.major >= 52
    }

    /// Disk images are locked against a second VMM (v46).
    pub fn disk_locks(&self) -> bool {
        self.major >= 46
    }
}

fn number(text: &str) -> Option<u32> {
    // `u32::from_str` would take a leading `+`.
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Version {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn the_forms_that_exist() {
        for (text, numbers) in [
            ("v53.0", (53, 0, 0)),
            ("53.0.0", (53, 0, 0)),
            ("v53.0.0", (53, 0, 0)),
            ("v54.0-12-gabc123", (54, 0, 0)),
            ("v50.1.2+dirty", (50, 1, 2)),
            (" v44.0\n", (44, 0, 0)),
        ] {
            let version = v(text);
            assert_eq!((version.major, version.minor, version.patch), numbers, "{text:?}");
            assert_eq!(version.to_string(), text.trim());
        }
    }

    #[test]
    fn what_is_not_a_version() {
        for text in
            ["", "v", "53", "v53", "v53.x", "v.0", "-53.0", "+53.0", "53.0.0.0", "99999999999.0", "v53.", "v53.0."]
        {
            assert!(Version::parse(text).is_err(), "{text:?} must be refused");
        }
    }

    #[test]
    fn old_versions_are_refused_and_new_ones_accepted() {
        assert!(v("v44.0").check_supported().is_ok());
        assert!(v("v54.0-12-gabc").check_supported().is_ok());
        let error = v("v43.0").check_supported().unwrap_err();
        assert!(error.to_string().contains("v43.0 is too old, v44.0 is the oldest"), "{error}");
    }

    #[test]
    fn capabilities_follow_the_table() {
        let table = |text| {
            let v = v(text);
            [
                v.image_type(),
                v.backing_files(),
                v.no_shutdown_flag(),
                v.restore_resume(),
                v.json_errors(),
                v.stale_socket_replaced(),
                v.sparse_shared_snapshot(),
                v.net_fds(),
                v.lock_granularity(),
                v.disk_locks(),
                v.private_map(),
                v.flushes_on_pause(),
            ]
        };
        let (y, n) = (true, false);
        assert_eq!(table("v44.0"), [n, n, n, n, n, n, n, y, n, n, n, n]);
        assert_eq!(table("v47.0"), [n, n, n, n, y, n, n, y, n, y, n, n]);
        assert_eq!(table("v50.0"), [n, n, n, n, y, n, n, y, n, y, n, n]);
        assert_eq!(table("v51.1"), [y, y, n, n, y, n, n, y, n, y, y, n]);
        assert_eq!(table("v52.0"), [y, y, y, y, y, n, y, y, y, y, y, n]);
        for text in ["v53.0", "v53.0-40-gabc"] {
            assert_eq!(table(text), [y, y, y, y, y, y, y, y, y, y, y, n]);
        }
        assert_eq!(table("v54.0"), [y; 12]);
    }

    #[test]
    fn serde_goes_through_the_parser() {
        let json = serde_json::to_string(&v("v53.0")).unwrap();
        assert_eq!(json, "\"v53.0\"");
        assert_eq!(serde_json::from_str::<Version>(&json).unwrap(), v("v53.0"));
        assert!(serde_json::from_str::<Version>("\"new\"").is_err());
    }
}
