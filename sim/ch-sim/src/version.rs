//! The version played (`CH_SIM_VERSION`, default v53.0) and what differs between versions (cloud-hypervisor.md 10).

use thiserror::Error;

/// Environment variable that selects the version, e.g. `v44.0`, `52` or `v53.0`.
pub const VERSION_VARIABLE: &str = "CH_SIM_VERSION";

/// The version given cannot be played.
#[derive(Debug, Error)]
#[error("{VERSION_VARIABLE}={0:?} is not a version between v38 and v53, like \"v53.0\"")]
pub struct Error(String);

/// A Cloud Hypervisor release, v38 to v53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    major: u16,
    minor: u16,
}

/// How disk images are locked (cloud-hypervisor.md 6, 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskLocks {
    /// Before v46: not at all.
    None,
    /// v46 to v49: the whole file.
    WholeFile,
    /// From v50: the bytes of the image.
    ByteRange,
}

impl Version {
    /// The version whose behaviour the specification was measured on.
    pub const V53: Self = Self { major: 53, minor: 0 };

    /// Reads the version from the environment.
    pub fn from_env() -> Result<Self, Error> {
        match std::env::var(VERSION_VARIABLE) {
            Ok(text) => Self::parse(&text),
            Err(_) => Ok(Self::V53),
        }
    }

    /// Parses `v53.0`, `53.0`, `53` and `53.0.1` (the last part is dropped).
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut parts = text.trim_start_matches('v').split('.');
        let mut number = |default: Option<u16>| match parts.next() {
            Some(part) => part.parse::<u16>().ok(),
            None => default,
        };
        match (number(None), number(Some(0))) {
            (Some(major @ 38..=53), Some(minor)) => Ok(Self { major, minor }),
            _ => Err(Error(text.to_owned())),
        }
    }

    /// `v53.0`, as `--version` and `vmm.ping` name the build.
    pub fn build(self) -> String {
        format!("v{}.{}", self.major, self.minor)
    }

    /// `53.0.0`, the package version of `vmm.ping`.
    pub fn package(self) -> String {
        format!("{}.{}.0", self.major, self.minor)
    }

    /// Errors are a JSON array of texts (v47); plain text before.
    pub fn json_errors(self) -> bool {
        self.major >= 47
    }

    /// A missing VM is answered with 404 (v53); 500 before.
    pub fn missing_vm_is_404(self) -> bool {
        self.major >= 53
    }

    /// The API socket has a `.lock` file and a stale one is replaced (v53).
    pub fn socket_lock(self) -> bool {
        self.major >= 53
    }

    /// `--no-shutdown` exists (v52).
    pub fn has_no_shutdown(self) -> bool {
        self.major >= 52
    }

    /// `image_type`, `backing_files` and `sparse` of a disk are known (v51).
    pub fn has_image_type(self) -> bool {
        self.major >= 51
    }

    /// `resume` and `memory_restore_mode` of a restore are known (v52).
    pub fn has_restore_options(self) -> bool {
        self.major >= 52
    }

    /// OnDemand loads in the background (v53); lazily, without a window, in v52.
    pub fn loads_in_background(self) -> bool {
        self.major >= 53
    }

    /// Snapshots of shared memory are sparse (v52).
    pub fn sparse_snapshots(self) -> bool {
        self.major >= 52
    }

    /// `vm.resize-disk` exists (v50).
    pub fn has_resize_disk(self) -> bool {
        self.major >= 50
    }

    /// `vm.resize-disk` grows qcow2 images too (v51).
    pub fn resizes_qcow2(self) -> bool {
        self.major >= 51
    }

    /// Null members are left out of `vm.info` and `config.json` (v53).
    pub fn omits_nulls(self) -> bool {
        self.major >= 53
    }

    /// `--version` also lists migration protocol versions (v53).
    pub fn lists_protocols(self) -> bool {
        self.major >= 53
    }

    /// How this version locks disk images.
    pub fn disk_locks(self) -> DiskLocks {
        match self.major {
            ..46 => DiskLocks::None,
            46..50 => DiskLocks::WholeFile,
            _ => DiskLocks::ByteRange,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DiskLocks, Version};

    #[test]
    fn reads_the_usual_spellings() {
        for text in ["v53.0", "53.0", "53", "v53.0.0"] {
            assert_eq!(Version::parse(text).ok(), Some(Version::V53), "{text}");
        }
        for text in ["", "v", "v37.0", "v54", "v53.x", "main"] {
            assert!(Version::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn differences_follow_the_version_table() {
        let v44 = Version::parse("v44.0").unwrap();
        assert!(!v44.json_errors() && !v44.socket_lock() && !v44.has_image_type());
        assert_eq!(v44.disk_locks(), DiskLocks::None);
        let v52 = Version::parse("v52.0").unwrap();
        assert!(v52.has_no_shutdown() && !v52.missing_vm_is_404() && v52.sparse_snapshots());
        assert_eq!(v52.build(), "v52.0");
        assert_eq!(v52.package(), "52.0.0");
    }
}
