//! One seed, many streams: each consumer of chance draws from a stream of its own name, so that a
//! new consumer does not change what the others draw.

use sha2::{Digest as _, Sha256};
use umbel_coordinator::random::Random;

/// The seed of a whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The generator of this name.
    #[must_use]
    pub fn stream(self, name: &str) -> Random {
        let digest = Sha256::new().chain_update(self.0.to_le_bytes()).chain_update(name).finalize();
        let mut bits = [0; 8];
        bits.copy_from_slice(&digest[..8]);
        Random::new(u64::from_le_bytes(bits))
    }
}
