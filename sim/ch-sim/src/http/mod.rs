//! The HTTP/1.1 server on the API socket: one thread, exact wire facts (cloud-hypervisor.md 2.1).

mod connection;
mod parser;
mod response;
mod server;

pub use parser::{Method, Request};
pub use response::Response;
pub use server::{Server, StopHandle};
