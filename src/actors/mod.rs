//! The actors: who owns what while the runner runs.
//!
//! ```text
//!   HTTP, JobPollerActor ──Order──► SupervisorActor ──Command──► VmActor (one per sandbox)
//!                                                                   └─OpenRoute/CloseRoute─► ProxyActor
//!   readers ──► Views, Routes (shared tables, no mailbox)
//! ```
//!
//! ForkActor stands between those who want copies and the supervisor: it has the copies made ready, then the source
//! captured, once for all who wait.

pub mod fork;
pub mod job_poller;
pub mod ledger;
pub mod proxy;
pub mod reporter;
pub mod supervisor;
pub mod vm;
pub mod work;

/// Tells the runner that one of its single actors has ended. Their state is not rebuilt one by one: the
/// process ends, the service manager starts it again, and VMs outlive that.
pub type Deaths = tokio::sync::mpsc::UnboundedSender<&'static str>;

/// Reports the end of an actor; during a shutdown nobody listens any more.
fn ended(deaths: &Deaths, who: &'static str) {
    let _ = deaths.send(who);
}

pub use fork::ForkActor;
pub use job_poller::JobPollerActor;
pub use ledger::LedgerActor;
pub use proxy::{ProxyActor, Routes};
pub use reporter::ReporterActor;
pub use supervisor::SupervisorActor;
pub use vm::VmActor;
pub use work::Work;
