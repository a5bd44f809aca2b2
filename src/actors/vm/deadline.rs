//! How long things may take that nobody outside has set a time for, and what is said when they take longer.

use std::time::Duration;

use tokio::time::timeout;
use tracing::error;

use super::perform::Job;
use crate::error::{Certainty, ErrorCode, Failure};
use crate::ids::SandboxId;
use crate::sandbox::Stage;
use crate::store::Error as StoreError;

/// Longest time for a stage without a setting of its own. Flattening a large base is the slowest.
pub(super) const STAGE_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// Longest time for a record to be flushed: a store that hangs must not hold the sandbox for ever.
pub(super) const STORE_DEADLINE: Duration = Duration::from_secs(60);
/// Longest time for what pauses a VM and freezes it. Shorter than that of a stage, so that what was begun is taken back
/// within the stage.
const CAPTURE_DEADLINE: Duration = Duration::from_secs(12 * 60);
/// How long a VM that was cut off in its pause is asked to run on.
const LET_GO: Duration = Duration::from_secs(90);

impl Job {
    /// Work that pauses the VM, within its deadline. One that is cut off lets the VM run on, if it ran before: nobody else
    /// would.
    pub(super) async fn in_capture<T>(
        &self,
        ran: bool,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        if let Ok(done) = timeout(CAPTURE_DEADLINE, work).await {
            return done;
        }
        let id = &self.record.id;
        let late = late(self.stage, id);
        if let (true, Some(vmm)) = (ran, &self.vmm) {
            let resumed = timeout(LET_GO, self.run_on(vmm)).await;
            if !matches!(resumed, Ok(Ok(()))) {
                error!(sandbox = %id, "the VM may be paused: it was cut off in its pause and does not take its resume");
                return Err(Failure {
                    message: format!("{late}; and the VM may be paused: stop and start it"),
                    ..late
                });
            }
        }
        Err(late)
    }
}

/// Longest time for each part of what is frozen while a VM is paused; `vm.snapshot` has as much.
const WINDOW: Duration = Duration::from_secs(120);

/// A disk that hangs must not keep the VM paused.
pub(super) async fn in_window<T>(what: &str, part: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| {
        let waited = WINDOW.as_secs();
        let message = format!("{what} could not be frozen within {waited} s; look for a hanging disk (dmesg)");
        Err(Failure::new(ErrorCode::Timeout, message))
    };
    timeout(WINDOW, part).await.unwrap_or_else(late)
}

pub(super) fn late(stage: Stage, id: &SandboxId) -> Failure {
    Failure {
        code: ErrorCode::Timeout,
        message: format!(
            "stage {} of sandbox {id} did not end in time; look for a hanging VMM, disk or kernel (dmesg)",
            stage.name(),
        ),
        certainty: Certainty::Unknown,
    }
}

/// A write to the store, within its deadline. One that passes it may still happen.
pub(super) async fn stored(write: impl Future<Output = Result<(), StoreError>>) -> Result<(), Failure> {
    timeout(STORE_DEADLINE, write).await.map_or_else(
        |_| {
            Err(Failure {
                code: ErrorCode::Timeout,
                message: format!(
                    "the store did not write within {} s; look for a hanging disk (dmesg) below RUNNER_STATE_PATH",
                    STORE_DEADLINE.as_secs()
                ),
                certainty: Certainty::Unknown,
            })
        },
        |written| Ok(written?),
    )
}
