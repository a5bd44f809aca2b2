//! What the guest remembers, and how it lies in guest memory.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fs::Fs;
use super::rng::Rng;
use super::writer::Writer;

/// First bytes of the state in memory.
const MAGIC: &[u8; 8] = b"CHSIMGST";
/// Magic and length in front of the state.
pub const HEADER_BYTES: usize = 16;

/// Memory of the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Random at each boot, kept by a restore.
    pub boot_id: String,
    pub hostname: String,
    /// Running time in milliseconds when the state was written.
    pub running_ms: u64,
    pub env: BTreeMap<String, String>,
    pub files: Fs,
    /// Token given to `POST /init`.
    pub token: Option<String>,
    /// Bytes that `POST /sink` has taken.
    pub sunk: u64,
    /// MiB of memory that `touch-ram` has filled.
    pub touched_mib: u64,
    /// `touch-ram` was called since the last pause.
    #[serde(skip)]
    pub touch: bool,
    /// Milliseconds since 1970 when the running time was zero, by the guest's clock.
    pub epoch_ms: i64,
    pub rng: Rng,
    pub writer: Writer,
    /// Address with prefix length, and gateway.
    pub address: (std::net::Ipv4Addr, u8),
    pub gateway: std::net::Ipv4Addr,
}

impl Default for State {
    fn default() -> Self {
        let env = [("HOME", "/home/daytona"), ("PATH", "/usr/local/bin:/usr/bin:/bin"), ("USER", "daytona")];
        Self {
            boot_id: crate::random::uuid(),
            hostname: "ch-sim".to_owned(),
            running_ms: 0,
            env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            files: Fs::default(),
            token: None,
            sunk: 0,
            touched_mib: 0,
            touch: false,
            epoch_ms: 0,
            rng: Rng::default(),
            writer: Writer::default(),
            address: (std::net::Ipv4Addr::new(192, 168, 0, 2), 24),
            gateway: std::net::Ipv4Addr::new(192, 168, 0, 1),
        }
    }
}

impl State {
    /// The bytes for guest memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Maps with string keys and numbers: serialisation cannot fail.
        let body = serde_json::to_vec(self).unwrap_or_default();
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Length of the whole state, from its header; `None` when there is no state.
    pub fn length(header: &[u8]) -> Option<usize> {
        let length = header.strip_prefix(MAGIC)?.get(..8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(length)).ok()?.checked_add(HEADER_BYTES)
    }

    /// Reads the state back.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let length = Self::length(bytes)?;
        serde_json::from_slice(bytes.get(HEADER_BYTES..length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::State;

    #[test]
    fn the_state_survives_memory() {
        let mut state = State::default();
        state.files.write("/tmp/x", &[0, 255, 7], false).unwrap();
        state.running_ms = 99;
        let mut bytes = state.to_bytes();
        bytes.extend_from_slice(b"whatever follows in memory");
        let read = State::from_bytes(&bytes).unwrap();
        assert_eq!(read.files, state.files);
        assert_eq!((read.running_ms, read.boot_id), (99, state.boot_id));
        assert!(State::from_bytes(&[0; 64]).is_none());
    }
}
