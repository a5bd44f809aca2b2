//! Programs that people use, through the runner to servers in a guest's place: whatever one of them
//! does to HTTP or WebSocket must pass as it would without a proxy. `make clients` installs them all and runs
//! them in full; here those that are not there are skipped, and the long ones are short.

#[path = "clients/browser.rs"]
mod browser;
mod common;
#[path = "clients/conformance.rs"]
mod conformance;
#[path = "clients/curl.rs"]
mod curl;
#[path = "clients/daytona.rs"]
mod daytona;
#[path = "clients/guest.rs"]
mod guest;
#[path = "clients/load.rs"]
mod load;
#[path = "clients/node.rs"]
mod node;
#[path = "clients/python.rs"]
mod python;
#[path = "clients/setup.rs"]
mod setup;
#[path = "clients/tls.rs"]
mod tls;
#[path = "clients/websocat.rs"]
mod websocat;
