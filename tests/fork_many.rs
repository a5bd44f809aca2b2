//! Many copies: hundreds under a writer, several of one pause, copies of copies, and whatever follows a copy at once.

#[path = "fork_many/chains.rs"]
mod chains;
mod common;
#[path = "fork_many/hundreds.rs"]
mod hundreds;
#[path = "fork_many/one_pause.rs"]
mod one_pause;
