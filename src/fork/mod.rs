//! Live fork, decided without doing: which recipe serves a source ([`plan`]), what a frozen point in time is
//! ([`capture`]), and how those who wait for one meet those who make it ([`ticket`]).

pub mod capture;
pub mod plan;
pub mod ticket;

pub use capture::{Capture, FrozenMemory, Report};
pub use plan::{Facts, Plan, Recipe, choose};
pub use ticket::{Ticket, Want};
