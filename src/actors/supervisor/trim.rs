//! Keeping the files bounded that VMMs write without end. A guest that prints for ever must not fill
//! the data volume, and this works without a reader, so it survives the runner.

use std::path::PathBuf;
use std::time::Duration;

use tracing::warn;

use crate::error::chain;
use crate::hypervisor::launch::Files;

/// Between two rounds.
pub(super) const INTERVAL: Duration = Duration::from_secs(30);

pub(super) async fn trim(dirs: Vec<PathBuf>) {
    for dir in dirs {
        let bounded = crate::blocking::DATA.run(move || Files::new(&dir).bound().map_err(|error| chain(&error)));
        if let Ok(Err(error)) = bounded.await {
            warn!(error, "cannot bound the files of a sandbox");
        }
    }
}
