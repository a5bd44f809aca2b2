//! One sandbox, decided without doing: its states and stages, what is stored of it, what a restart
//! makes of a record, who is admitted. Nothing in here does I/O or reads a clock.
//!
//! ```text
//!            Create                                Stop / VMM died
//!  Absent ──────────► [provide launch configure  ◄──────────────── Started
//!    ▲                 boot ready commit] ───────────────────────────► ▲
//!    │   failed: undo     │ skipStart                                  │
//!    ◄────────────────────┼──────────────► Stopped ── Start ──────────┘
//!    ◄── Destroy from anywhere, overtaking what waits
//! ```

pub mod admission;
pub mod capacity;
pub mod machine;
pub mod op;
pub mod record;
pub mod recovery;
pub mod restart;
pub mod view;

pub use machine::{Action, Caller, Event, Machine};
pub use op::{Ask, Make, Op, Rest, Stage, StopMode};
pub use record::{Phase, Record, Size};
pub use view::{View, Views, WireState};
