//! The same calls and answers against the simulator and, where available, the real program.
//!
//! `CH_BINARY` names the real one. Every expectation below holds for both.

mod common;
mod scenarios;
