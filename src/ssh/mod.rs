//! The SSH gateway (PROTOCOL.md 8): a user's way into a sandbox by SSH. The user name is the sandbox, one public key is
//! let in; the other end is the guest's SSH server, reached in the sandbox's namespace.
//!
//! | module | what it is |
//! |---|---|
//! | `gateway` | listens, admits, drains |
//! | `client`, `connection`, `guest` | the two connections; one of the guest's for each of a client's |
//! | `channel` | carries one channel both ways |
//! | `queue`, `valve` | why nobody waits for anybody else, and memory stays flat all the same |
//! | `logins`, `sandboxes` | limits |
//! | `key` | the host key, the key that is let in |
//!
//! It has threads of its own: neither cryptography nor a panic in here can hold up anything else.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russh::{Preferred, cipher, compression, kex};

use crate::actors::Routes;
use crate::config::Ssh;
use crate::ids::SandboxId;
use crate::sandbox::Views;

mod channel;
mod client;
mod connection;
mod gateway;
mod guest;
mod key;
mod logins;
mod queue;
mod sandboxes;
mod valve;

pub use gateway::{Gateway, start};

/// Window of a channel: how many bytes the other side may send ahead.
const WINDOW: u32 = 2 << 20;

/// What all connections share.
struct Shared {
    settings: Ssh,
    routes: Routes,
    views: Views,
    admitted: key::Admitted,
    logins: Mutex<logins::Logins>,
    sandboxes: sandboxes::Sandboxes,
    client: Arc<russh::client::Config>,
}

impl Shared {
    fn logins(&self) -> MutexGuard<'_, logins::Logins> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why there is no way into the sandbox, in words for its user.
    fn why_not(&self, id: &SandboxId) -> String {
        let Some(view) = self.views.get(id) else {
            return format!("there is no sandbox {id} on this runner");
        };
        let now = serde_json::to_value(view.state).ok().and_then(|name| name.as_str().map(str::to_owned));
        format!("sandbox {id} does not run: it is {}; start it and try again", now.unwrap_or_default())
    }
}

/// What both sides are offered: no compression, and of the rest what is not known to be weak, the fastest first.
fn algorithms() -> Preferred {
    const KEX: &[kex::Name] = &[
        kex::MLKEM768X25519_SHA256,
        kex::CURVE25519,
        kex::CURVE25519_PRE_RFC_8731,
        kex::ECDH_SHA2_NISTP256,
        kex::ECDH_SHA2_NISTP384,
        kex::ECDH_SHA2_NISTP521,
        kex::DH_G16_SHA512,
        kex::DH_G18_SHA512,
        kex::DH_G14_SHA256,
        kex::EXTENSION_SUPPORT_AS_CLIENT,
        kex::EXTENSION_SUPPORT_AS_SERVER,
        kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
        kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
    ];
    const CIPHERS: &[cipher::Name] = &[
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_256_CTR,
        cipher::AES_192_CTR,
        cipher::AES_128_CTR,
    ];
    Preferred {
        kex: Cow::Borrowed(KEX),
        cipher: Cow::Borrowed(CIPHERS),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}
