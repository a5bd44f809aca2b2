//! The network on the real kernel.

mod egress;
mod guest;
mod host;
mod lifecycle;
mod limits;
mod support;
mod traffic;
mod world;
