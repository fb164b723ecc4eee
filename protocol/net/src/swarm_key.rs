//! What the members of a private swarm have in common: a secret that both ends of a connection must
//! have for its handshake to succeed.
//!
//! The secret is the prologue of the Noise handshake (<https://noiseprotocol.org/noise.html>, section
//! 6): it goes into the hash that authenticates every encrypted part of it. Who lacks it knows 256
//! unknown bits of that hash too few to make or to check a single tag, and every connection has
//! another hash; so it can neither come in nor let a member in. QUIC's handshake, TLS, has no place
//! for it, which is why the peers of a private swarm speak TCP alone.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::{fmt, str};

/// Bytes of the secret.
pub(crate) const KEY_BYTES: usize = 32;

/// Goes before the secret, so that it is of no use for anything else.
const DOMAIN: &[u8] = b"umbel swarm v1\0";

/// What a file of a key begins with.
const LABEL: &str = "umbel-swarm-key-1 ";

/// Most bytes that are read of a file: a key has 63 at most.
const FILE_BYTES_MAX: u64 = 1 << 10;

/// The secret of a private swarm.
#[derive(Clone, PartialEq, Eq)]
pub struct SwarmKey([u8; KEY_BYTES]);

impl SwarmKey {
    /// Makes a secret and keeps it in a new file that only this user can read.
    ///
    /// # Errors
    /// [`SwarmKeyError`] where the file is there already, or cannot be made.
    pub fn create(path: &Path) -> Result<Self, SwarmKeyError> {
        let failed = |source| SwarmKeyError::Create { path: path.to_owned(), source };
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| failed(error.into()))?;
        let key = Self(bytes);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(failed)?;
        let text = format!("{LABEL}{}\n", bs58::encode(bytes).into_string());
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(key)
    }

    /// Reads the secret in a file.
    ///
    /// # Errors
    /// [`SwarmKeyError`] where it cannot be read, holds none, or can be read by others.
    pub fn load(path: &Path) -> Result<Self, SwarmKeyError> {
        let failed = |source| SwarmKeyError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        #[cfg(unix)]
        {
            let metadata = file.metadata().map_err(failed)?;
            if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0 {
                return Err(SwarmKeyError::Exposed { path: path.to_owned() });
            }
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        let text = str::from_utf8(&bytes).ok().and_then(|text| text.strip_prefix(LABEL));
        let key = text.and_then(|text| bs58::decode(text.trim()).into_vec().ok());
        let key = key.and_then(|key| key.try_into().ok());
        key.map(Self).ok_or_else(|| SwarmKeyError::Malformed { path: path.to_owned() })
    }

    pub(crate) const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// What both sides of a handshake must say.
    pub(crate) fn prologue(&self) -> Vec<u8> {
        [DOMAIN, &self.0].concat()
    }
}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwarmKey(..)")
    }
}

/// What to do where there is a file already.
fn taken(error: &io::Error) -> &'static str {
    let taken = error.kind() == ErrorKind::AlreadyExists;
    if taken { ": invite others with the key that is there, or name another file" } else { "" }
}

/// What to do where there is no file.
fn missing(error: &io::Error) -> &'static str {
    let missing = error.kind() == ErrorKind::NotFound;
    let advice =
        ": `umbel swarm new` makes a key, and whoever has an invite joins with --join instead";
    if missing { advice } else { "" }
}

/// The file of a key that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SwarmKeyError {
    /// It cannot be made.
    #[error("{} cannot be made{}", path.display(), taken(source))]
    Create {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be read.
    #[error("{} cannot be read{}", path.display(), missing(source))]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could read the secret.
    #[error("{} can be read by others: chmod 600 it", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("{} holds no key of a swarm, as `umbel swarm new` makes it", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
    },
}
