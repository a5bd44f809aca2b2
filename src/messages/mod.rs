//! The vocabulary of the actors: one struct per message, named for what it asks or tells.

pub mod fork;
pub mod jobs;
pub mod ledger;
pub mod proxy;
pub mod supervisor;
pub mod vm;
