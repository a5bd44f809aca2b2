//! The directories of sandboxes and snapshots belong to one runner. Another one would take what this one is making there
//! for what a crash has left, and remove it.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::time::{Instant, sleep};

use crate::error::{ErrorCode, Failure};

/// A runner that ends lets go a moment after its successor starts.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

/// Locks the directories, which are made when missing, for as long as the result lives.
pub(super) async fn lock(roots: &[&Path]) -> Result<Vec<Flock<File>>, Failure> {
    let mut locks = Vec::new();
    for root in roots {
        locks.push(lock_one(root).await?);
    }
    Ok(locks)
}

async fn lock_one(root: &Path) -> Result<Flock<File>, Failure> {
    let failed = |why: String| Failure::new(ErrorCode::Internal, format!("cannot lock the directory {root:?}: {why}"));
    let made = DirBuilder::new().recursive(true).mode(0o700).create(root);
    made.map_err(|error| failed(error.to_string()))?;
    let until = Instant::now() + PATIENCE;
    let mut directory = File::open(root).map_err(|error| failed(error.to_string()))?;
    loop {
        directory = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((directory, Errno::EWOULDBLOCK)) if Instant::now() < until => directory,
            Err((_, Errno::EWOULDBLOCK)) => {
                let why = "another runner uses it; stop that one, or give each runner CH_SANDBOXES_PATH and CH_SNAPSHOTS_PATH of its own";
                return Err(failed(why.to_owned()));
            }
            Err((_, errno)) => return Err(failed(errno.to_string())),
        };
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix::test]
    async fn a_second_one_is_refused_and_the_next_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("boxes");
        let first = lock(&[&root]).await.unwrap();
        let refused = lock(&[&root]).await.unwrap_err();
        assert!(refused.message.contains("another runner") && refused.message.contains("boxes"), "{refused}");
        drop(first);
        lock(&[&root]).await.unwrap();
    }
}
