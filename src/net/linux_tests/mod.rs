//! The network on the real kernel.

mod guest;
mod host;
mod lifecycle;
mod support;
mod traffic;
