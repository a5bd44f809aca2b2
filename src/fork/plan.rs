//! Which recipe serves a source: by its VMM's version, what its memory is made of, and the format of its disk
//! (cloud-hypervisor.md 5.5 and 6).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::disk::Format;
use crate::hypervisor::Version;
use crate::hypervisor::snapshot::RestoreMode;
use crate::hypervisor::wire::MemoryLayout;

/// How memory comes out of a running source; the letters are those of cloud-hypervisor.md 5.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// A: the VMM writes the touched pages of its shared memory; the source is paused as long as that takes.
    Written,
    /// G: the runner copies the pages that differ from the frozen file which the VM maps privately.
    Delta,
    /// F: the memory is a file already; it is frozen by ending the VMM that writes to it.
    Frozen,
}

/// What is known of a source.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its VMM.
    pub version: &'a Version,
    /// What its memory is made of.
    pub layout: &'a MemoryLayout,
    /// Format of its disk.
    pub format: Format,
}

/// How a source is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Its memory.
    pub recipe: Recipe,
    /// Its VMM has to be ended, and a new one goes on from the same point.
    pub replace: bool,
    /// How the memory comes into those that go on from it.
    pub mode: RestoreMode,
    /// Why, in words for the log and the operator.
    pub why: &'static str,
}

/// Chooses. Every combination has a recipe that loses nothing; what differs is the price.
pub fn choose(facts: Facts<'_>) -> Plan {
    let mode = if facts.version.private_map() { RestoreMode::Map } else { RestoreMode::Copy };
    // A paused VMM has not written all of a qcow2 image to the file, and without its end nobody can make it.
    let qcow2 = facts.format == Format::Qcow2;
    let (recipe, why) = match facts.layout {
        MemoryLayout::File { .. } => (Recipe::Frozen, "the memory is a file, which is frozen by ending its VMM"),
        MemoryLayout::Private { .. } if qcow2 => {
            (Recipe::Delta, "what differs from the memory file is copied; the qcow2 disk needs the end of its VMM")
        }
        MemoryLayout::Private { .. } => (Recipe::Delta, "what differs from the memory file is copied"),
        MemoryLayout::Shared if !facts.version.sparse_shared_snapshot() => {
            (Recipe::Written, "this version of the hypervisor writes all memory, touched or not")
        }
        MemoryLayout::Shared if qcow2 => {
            (Recipe::Written, "the hypervisor writes the touched memory; the qcow2 disk needs the end of its VMM")
        }
        MemoryLayout::Shared => (Recipe::Written, "the hypervisor writes the touched memory"),
        MemoryLayout::Anonymous => (Recipe::Written, "the hypervisor writes all of its anonymous memory"),
    };
    Plan { recipe, replace: qcow2 || recipe == Recipe::Frozen, mode, why }
}

/// What the memory of a VM that boots is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemorySetting {
    /// A private map of a blank file where the hypervisor can, shared memory elsewhere.
    #[default]
    Private,
    /// Shared memory (recipe A).
    Shared,
    /// A file of its own (recipe F).
    File,
}

impl MemorySetting {
    /// What a VM is booted with whose memory file, if it needs one, is `file`.
    pub fn layout(self, version: &Version, file: std::path::PathBuf) -> MemoryLayout {
        match self {
            _ if !version.private_map() => MemoryLayout::Shared,
            Self::Private => MemoryLayout::Private { path: file },
            Self::Shared => MemoryLayout::Shared,
            Self::File => MemoryLayout::File { path: file },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(version: &str, layout: MemoryLayout, format: Format) -> Plan {
        let version = Version::parse(version).unwrap();
        choose(Facts { version: &version, layout: &layout, format })
    }

    #[test]
    fn a_qcow2_disk_is_never_copied_behind_a_running_vmm() {
        for version in ["v44.0", "v51.0", "v53.0"] {
            for layout in [
                MemoryLayout::Shared,
                MemoryLayout::Anonymous,
                MemoryLayout::File { path: "/m".into() },
                MemoryLayout::Private { path: "/m".into() },
            ] {
                assert!(plan(version, layout, Format::Qcow2).replace, "{version}");
            }
        }
    }

    #[test]
    fn memory_that_is_a_file_in_use_ends_its_vmm() {
        assert!(plan("v53.0", MemoryLayout::File { path: "/m".into() }, Format::Raw).replace);
        assert!(!plan("v53.0", MemoryLayout::Private { path: "/m".into() }, Format::Raw).replace);
        assert!(!plan("v53.0", MemoryLayout::Shared, Format::Raw).replace);
    }

    #[test]
    fn versions_that_cannot_map_a_frozen_file_copy_it() {
        assert_eq!(plan("v50.0", MemoryLayout::Shared, Format::Raw).mode, RestoreMode::Copy);
        assert_eq!(plan("v51.0", MemoryLayout::Shared, Format::Raw).mode, RestoreMode::Map);
        let old = Version::parse("v50.0").unwrap();
        for setting in [MemorySetting::Private, MemorySetting::Shared, MemorySetting::File] {
            assert_eq!(setting.layout(&old, "/m".into()), MemoryLayout::Shared);
        }
    }
}
