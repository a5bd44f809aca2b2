//! Tests with real processes, files and file systems.

mod captures;
mod guest;
mod names;
mod proofs;
mod support;
mod times;
