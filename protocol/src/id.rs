//! Names of peers, models, sessions and steps.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{SigningKey, VerifyingKey};

/// A participant of the network, named by its ed25519 public key.
///
/// Displays as libp2p writes peer ids (`12D3Koo…`): base58 of an identity multihash of the key in
/// its protobuf envelope, <https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md>.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 32]);

/// Identity multihash of 36 bytes, which are a protobuf with key type 1 (ed25519) and 32 bytes.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl PeerId {
    /// The peer whose public key is `key`.
    #[must_use]
    pub const fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The peer that signs with `key`.
    #[must_use]
    pub fn of(key: &SigningKey) -> Self {
        Self(key.verifying_key().to_bytes())
    }

    /// The 32 bytes of the ed25519 public key.
    #[must_use]
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key that checks this peer's signatures; `None` where the bytes are no point of the curve.
    #[must_use]
    pub fn verifying_key(&self) -> Option<VerifyingKey> {
        VerifyingKey::from_bytes(&self.0).ok()
    }

    /// The bytes of the multihash that libp2p calls a peer id.
    #[must_use]
    pub fn to_multihash(self) -> Vec<u8> {
        [PEER_ID_PREFIX.as_slice(), &self.0].concat()
    }

    /// Reads the multihash that libp2p calls a peer id.
    ///
    /// # Errors
    /// [`InvalidPeerId`] where the bytes name no ed25519 key.
    pub fn from_multihash(bytes: &[u8]) -> Result<Self, InvalidPeerId> {
        let key = bytes.strip_prefix(&PEER_ID_PREFIX).ok_or(InvalidPeerId)?;
        Ok(Self(key.try_into().map_err(|_| InvalidPeerId)?))
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_multihash()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PeerId {
    type Err = InvalidPeerId;

    fn from_str(text: &str) -> Result<Self, InvalidPeerId> {
        // A peer id has 52 characters; the bound keeps base58, which is quadratic, cheap.
        if text.len() > 64 {
            return Err(InvalidPeerId);
        }
        Self::from_multihash(&bs58::decode(text).into_vec().map_err(|_| InvalidPeerId)?)
    }
}

/// A text or bytes that name no ed25519 peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the id of an ed25519 peer (such an id begins with 12D3Koo)")]
pub struct InvalidPeerId;

/// A name that is the hash of what it names, written as 64 hexadecimal digits, and the error for a text
/// that is none.
macro_rules! content_id {
    ($(#[$doc:meta])* $name:ident, $(#[$error_doc:meta])* $error:ident: $message:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The id with these bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes of the hash.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                hash(text).map(Self).ok_or($error)
            }
        }

        $(#[$error_doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        #[error($message)]
        pub struct $error;
    };
}

content_id!(
    /// SHA-256 over an adapter's configuration and values: equal ids mean equal adapters.
    AdapterId,
    /// A text that is no adapter id.
    InvalidAdapterId: "not an adapter id (such an id has 64 hexadecimal digits)"
);

content_id!(
    /// SHA-256 over a model's manifest: equal ids mean equal configuration, weights and quantization.
    ModelId,
    /// A text that is not 64 hexadecimal digits.
    InvalidModelId: "not a model id (64 hexadecimal digits)"
);

/// The bytes of 64 hexadecimal digits.
fn hash(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// One client's session, drawn at random by the client: who knows it may push into it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u128);

impl SessionId {
    /// The session with this number.
    #[must_use]
    pub const fn new(number: u128) -> Self {
        Self(number)
    }

    /// The number as drawn.
    #[must_use]
    pub const fn number(self) -> u128 {
        self.0
    }
}

impl fmt::Display for SessionId {
    /// The first 32 bits: enough to tell sessions apart in a log, too few to push into one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 96)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The number of a step within its session, counted up by the client from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StepId(pub u64);

impl StepId {
    /// The step after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_is_written_as_libp2p_writes_it() {
        // RFC 8032, section 7.1, test 1: the public key of the all-known secret key.
        let key = SigningKey::from_bytes(&[
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec,
            0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03,
            0x1c, 0xae, 0x7f, 0x60,
        ]);
        let peer = PeerId::of(&key);
        let text = peer.to_string();
        assert!(text.starts_with("12D3Koo"), "{text}");
        assert_eq!(text.len(), 52);
        assert_eq!(text.parse(), Ok(peer));
    }

    #[test]
    fn other_texts_are_no_peer() {
        for text in ["", "Qm", "12D3Koo", "0OIl", &"1".repeat(10_000)] {
            assert_eq!(text.parse::<PeerId>(), Err(InvalidPeerId), "{text}");
        }
    }

    #[test]
    fn a_model_id_survives_its_text() {
        let id = ModelId::from_bytes(std::array::from_fn(|i| u8::try_from(i * 7).unwrap()));
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "00", &"g".repeat(64), &"é".repeat(32), &"+1".repeat(32)] {
            assert_eq!(text.parse::<ModelId>(), Err(InvalidModelId), "{text}");
        }
    }

    #[test]
    fn a_session_shows_too_little_of_itself_to_be_pushed_into() {
        assert_eq!(SessionId::new(u128::MAX).to_string(), "ffffffff");
    }
}
