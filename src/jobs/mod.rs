//! Jobs of the control plane: what they carry, what is remembered of them, and what is done when one
//! arrives (again).

pub mod decide;
pub mod journal;
pub mod outcome;
pub mod payload;
