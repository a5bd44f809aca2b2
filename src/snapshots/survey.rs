//! What lies under temporary names below CH_SNAPSHOTS_PATH: snapshots that are being made or removed in this process,
//! and what earlier lives have left of such work.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use super::Error;
use super::files::{Inner, TEMPORARY, erase};

/// Everything that was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotSurvey {
    /// What has a temporary name of ours, and whether that is under way in this process.
    pub temporaries: Vec<(PathBuf, bool)>,
}

/// A temporary name in use.
pub(super) struct Temporary<'a> {
    names: &'a Mutex<HashSet<PathBuf>>,
    path: PathBuf,
}

impl<'a> Temporary<'a> {
    pub(super) fn begin(names: &'a Mutex<HashSet<PathBuf>>, path: PathBuf) -> Self {
        names.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
        Self { names, path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.path);
    }
}

impl Inner {
    /// As [`super::Snapshots::survey`].
    pub(super) fn survey(&self) -> Result<SnapshotSurvey, Error> {
        let list = || Error::io("list", &self.root);
        let mut survey = SnapshotSurvey::default();
        for entry in std::fs::read_dir(&self.root).map_err(list())? {
            let path = entry.map_err(list())?.path();
            if self.is_ours(&path) {
                let under_way = self.is_under_way(&path);
                survey.temporaries.push((path, under_way));
            }
        }
        Ok(survey)
    }

    /// As [`super::Snapshots::remove_leaked`].
    pub(super) fn remove_leaked(&self, path: &Path) -> Result<bool, Error> {
        // Names are random, so one that is not under way never comes to be.
        if !self.is_ours(path) || self.is_under_way(path) || path.symlink_metadata().is_err() {
            return Ok(false);
        }
        erase(path).map(|()| true).map_err(Error::io("remove", path))
    }

    fn is_ours(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        let random = name.and_then(|name| name.strip_prefix(TEMPORARY));
        path.parent() == Some(&self.root) && random.is_some_and(|random| Uuid::try_parse(random).is_ok())
    }

    fn is_under_way(&self, path: &Path) -> bool {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).contains(path)
    }
}
