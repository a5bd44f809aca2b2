//! Orders for what a live runner can do with a sandbox beyond its plain life: fork, clone, pause, resize, snapshots.
//! Payloads in the dialect of the simulated API (PROTOCOL.md 5).

use crate::handle::Handle;
use crate::job::{ResourceType, job_type};
use crate::payload::{self, CreateSpec, Resize};
use crate::sandbox::SandboxState;
use crate::submit;

impl Handle {
    /// Orders a fork of a sandbox under a new id.
    pub fn fork_sandbox(&self, source: &str, new: &str) -> Result<String, submit::Error> {
        self.copy_sandbox(job_type::FORK_SANDBOX, source, new)
    }

    /// Orders a clone of a sandbox under a new id (the branch's own job).
    pub fn clone_sandbox(&self, source: &str, new: &str) -> Result<String, submit::Error> {
        self.copy_sandbox(job_type::CLONE_SANDBOX, source, new)
    }

    fn copy_sandbox(&self, kind: &str, source: &str, new: &str) -> Result<String, submit::Error> {
        let state = self.sandbox(source).map_or(SandboxState::Started, |row| row.state);
        let payload = payload::fork(self.dialect(), source, new, payload::source_state(state));
        self.submit(kind, ResourceType::Sandbox, new, payload)
    }

    /// Orders a pause.
    pub fn pause_sandbox(&self, id: &str) -> Result<String, submit::Error> {
        self.submit(job_type::PAUSE_SANDBOX, ResourceType::Sandbox, id, payload::pause(id))
    }

    /// Orders other figures for a sandbox.
    pub fn resize_sandbox(&self, id: &str, to: Resize) -> Result<String, submit::Error> {
        self.submit(job_type::RESIZE_SANDBOX, ResourceType::Sandbox, id, to.payload())
    }

    /// Orders a snapshot of a sandbox: SNAPSHOT_SANDBOX in v0.190, CREATE_SANDBOX_SNAPSHOT on the branch.
    /// `memory` asks for a warm one.
    pub fn snapshot_sandbox(&self, id: &str, name: &str, memory: bool) -> Result<String, submit::Error> {
        let organization = CreateSpec::new(id).organization_id;
        let (kind, payload) = payload::snapshot(self.dialect(), id, name, &organization, memory);
        self.submit(kind, ResourceType::Sandbox, id, payload)
    }

    /// Orders the removal of a snapshot: a job without a payload.
    pub fn remove_snapshot(&self, reference: &str) -> Result<String, submit::Error> {
        self.submit(job_type::REMOVE_SNAPSHOT, ResourceType::Snapshot, reference, ())
    }
}
