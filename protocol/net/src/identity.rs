//! Who a peer is: an Ed25519 key, kept in a file that one process at a time may have.

mod file;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use ed25519_dalek::{SigningKey, pkcs8};
use umbel_protocol::PeerId;

/// The key of a peer. While it lives, no other process can load it from its file.
pub struct Identity {
    key: SigningKey,
    /// Held for its lock.
    _file: Option<File>,
}

impl Identity {
    /// Loads the key in `path`, or makes one there that only this user can read.
    ///
    /// The file is a PKCS#8 key in PEM, as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// [`LoadIdentityError`] where the file cannot be read or made, holds no such key, can be read
    /// by others, or is in use.
    pub fn load_or_create(path: &Path) -> Result<Self, LoadIdentityError> {
        let (key, file) = file::load_or_create(path)?;
        Ok(Self { key, _file: Some(file) })
    }

    /// A key that nobody will have again.
    ///
    /// # Panics
    /// If the system has no randomness.
    #[must_use]
    pub fn ephemeral() -> Self {
        Self { key: SigningKey::from_bytes(&random_seed()), _file: None }
    }

    /// The key itself.
    #[must_use]
    pub const fn signing_key(&self) -> &SigningKey {
        &self.key
    }

    /// The peer whose key this is.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        PeerId::of(&self.key)
    }

    /// The same key for libp2p.
    pub(crate) fn keypair(&self) -> libp2p::identity::Keypair {
        libp2p::identity::Keypair::ed25519_from_bytes(self.key.to_bytes())
            .expect("32 bytes are a key")
    }
}

impl fmt::Debug for Identity {
    /// The public half; never the secret one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer_id())
    }
}

fn random_seed() -> [u8; 32] {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("the system has randomness");
    seed
}

/// A key that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadIdentityError {
    /// The file is there but cannot be read.
    #[error("cannot read the identity {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not there and cannot be made.
    #[error("cannot make the identity {path}", path = path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others can read the secret.
    #[error(
        "the identity {path} can be read by others (mode {mode:o}): run `chmod 600 {path}`",
        path = path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It holds something else.
    #[error(
        "{path} is no Ed25519 key in PKCS#8 PEM: name another file, or one that is not there yet to \
         have an identity made",
        path = path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where it stops making sense.
        source: pkcs8::Error,
    },
    /// Another process runs as this peer.
    #[error(
        "another process uses the identity {path}: stop it, or name another file",
        path = path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
}
