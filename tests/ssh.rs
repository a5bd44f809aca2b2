//! The SSH gateway (PROTOCOL.md 8), with the real OpenSSH on both ends.

mod common;
#[path = "ssh/files.rs"]
mod files;
#[path = "ssh/forwards.rs"]
mod forwards;
#[path = "ssh/guests.rs"]
mod guests;
#[path = "ssh/harness.rs"]
mod harness;
#[path = "ssh/logins.rs"]
mod logins;
#[path = "ssh/sessions.rs"]
mod sessions;
#[path = "ssh/signals.rs"]
mod signals;
#[path = "ssh/streams.rs"]
mod streams;
