//! Copies of running sandboxes while something fails: each call of Cloud Hypervisor at the source and at the copy,
//! in each way. The source goes on, the copy leaves nothing, the error says which step failed and why, and the next
//! copy works.

mod common;
#[path = "fork_faults/crashed.rs"]
mod crashed;
#[path = "fork_faults/disk_full.rs"]
mod disk_full;
#[path = "fork_faults/killed.rs"]
mod killed;
#[path = "fork_faults/matrix.rs"]
mod matrix;
