//! The guest's random generator. All it knows lies in guest memory, so copies of a guest go on alike until
//! they are given entropy of their own: what a real kernel does after a restore.

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

/// A generator: its state is the hash of all that went in and came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rng(Vec<u8>);

impl Default for Rng {
    /// A generator that was seeded by the host, as at a boot.
    fn default() -> Self {
        Self(crate::random::bytes::<20>().to_vec())
    }
}

impl Rng {
    /// The next 16 bytes as hex digits.
    pub fn hex(&mut self) -> String {
        let bytes = self.hash(b"out");
        self.0 = self.hash(b"next");
        bytes[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Mixes entropy in; what comes out from now on depends on it.
    pub fn reseed(&mut self, entropy: &[u8]) {
        self.0 = self.hash(entropy);
    }

    fn hash(&self, with: &[u8]) -> Vec<u8> {
        Sha1::new().chain_update(&self.0).chain_update(with).finalize().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn copies_are_equal_until_they_are_reseeded() {
        let mut one = Rng::default();
        let first = one.hex();
        let (mut two, mut three) = (one.clone(), one.clone());
        let next = one.hex();
        assert_eq!((next.len(), &next), (32, &two.hex()));
        assert_ne!(first, next);
        two.reseed(b"two");
        three.reseed(b"three");
        assert_ne!(two.hex(), three.hex());
    }
}
