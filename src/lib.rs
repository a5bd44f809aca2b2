//! runner-ch: a host daemon that runs Daytona sandboxes as Cloud Hypervisor microVMs.
//!
//! | module | what it is |
//! |---|---|
//! | [`app`] | builds everything, starts it, ends it in order |
//! | [`cli`] | the command line: the daemon, or a command for the store |
//! | [`config`], [`telemetry`], [`host`] | settings, logs, the machine |
//! | [`sandbox`], [`jobs`] | decisions: state machine, recovery, admission, job journal; no I/O |
//! | [`actors`], [`messages`] | who owns what, and the vocabulary between them |
//! | [`blocking`] | shares of the blocking threads |
//! | [`ports`] | the traits behind which all effects happen |
//! | [`pressure`] | whether a volume is about to be full |
//! | [`fork`] | decisions of a live fork: which recipe, what the capture is; no I/O |
//! | [`forks`] | what a fork(2) must not copy |
//! | [`crash`] | places where tests let the runner die; in debug builds only |
//! | [`ledger`] | what should be on the host against what is; no I/O |
//! | [`hypervisor`], [`net`], [`disk`], [`memory`], [`snapshots`], [`store`], [`control_plane`], [`toolbox`] | the effects |
//! | [`http`] | the runner's own API and the way into the guests |
//! | [`ssh`] | the way into the guests by SSH |

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod actors;
pub mod app;
pub mod backoff;
pub mod blocking;
pub mod cli;
pub mod config;
pub mod control_plane;
pub mod crash;
pub mod disk;
pub mod error;
pub mod fork;
pub mod forks;
pub mod host;
pub mod http;
pub mod hypervisor;
pub mod ids;
pub mod jobs;
pub mod ledger;
pub mod memory;
pub mod messages;
pub mod net;
pub mod ports;
pub mod pressure;
pub mod sandbox;
pub mod snapshots;
pub mod ssh;
pub mod store;
pub mod telemetry;
pub mod toolbox;
