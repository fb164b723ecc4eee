//! What must hold of each decoder of foreign bytes, whatever the bytes are.
//!
//! `cargo fuzz` feeds these functions bytes of its own (`tests/fuzz`), the ordinary tests feed them
//! the corpus that came of it. A function returns whether the bytes were accepted, and panics where
//! something does not hold.

use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use umbel_protocol::announcement::{SignedAnnouncement, UnixTime};
use umbel_protocol::averaging::MemberMessage;
use umbel_protocol::compression;
use umbel_protocol::directory::{DirectoryAnswer, DirectoryRequest};
use umbel_protocol::frame::{Frame, FrameDecoder, FrameError, Limits, encode_prefix};
use umbel_protocol::inference::{ClientMessage, PushMessage, ServerMessage};
use umbel_protocol::local::{LocalAnswer, LocalRequest};
use umbel_protocol::published::{AdapterAnswer, AdapterRequest};
use umbel_protocol::training::{TrainerMessage, TrainingAnswer};
use umbel_protocol::version::{LinkProtocol, Side};
use umbel_protocol::{DType, ProtocolViolation};
use umbel_shard::ModelConfig;
use umbel_shard::gguf;
use umbel_shard::safetensors::{self, StoredType, WeightIndex};

/// Bytes of a signature, and of a length in a header.
const SIGNATURE_BYTES: usize = 64;
const LENGTH_BYTES: usize = 8;

/// The bytes that the signature of an announcement is over begin with this.
const ANNOUNCEMENT_DOMAIN: &[u8] = b"umbel announcement v1\0";

/// The moment at which announcements are read: 2027-01-15 08:00 UTC.
pub const NOW: UnixTime = UnixTime::after_epoch(Duration::from_secs(1_800_000_000));

/// The key that signs what [`announcement`] is given.
#[must_use]
pub fn key() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

/// Bytes from either end of any link: frames, and the messages in them.
pub fn frames(data: &[u8]) -> bool {
    let mut accepted = false;
    for protocol in LinkProtocol::ALL {
        for side in [Side::Opener, Side::Acceptor] {
            let limits = protocol.limits(side);
            let frames = decode(data, data.len(), limits);
            let pieces = decode(data, data.len() / 3 + 1, limits);
            assert!(frames == pieces, "how the bytes are cut changes what is read");
            for frame in frames.unwrap_or_default() {
                assert_eq!(encode_prefix(&frame, limits).map(|prefix| prefix.len()), Ok(8));
                accepted |= message(protocol, side, frame);
            }
        }
    }
    accepted
}

/// The frames in bytes that come in pieces of this size.
fn decode(data: &[u8], piece: usize, limits: Limits) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = FrameDecoder::new(limits);
    let mut frames = Vec::new();
    for piece in data.chunks(piece.max(1)) {
        frames.extend(decoder.push(piece)?);
    }
    Ok(frames)
}

/// Reads a frame as the message that it must be there.
fn message(protocol: LinkProtocol, side: Side, frame: Frame) -> bool {
    match (protocol, side) {
        (LinkProtocol::Session, Side::Opener) => {
            survives(frame, ClientMessage::decode, ClientMessage::encode)
        }
        (LinkProtocol::Session, Side::Acceptor) => {
            survives(frame, ServerMessage::decode, ServerMessage::encode)
        }
        (LinkProtocol::Push, Side::Opener) => {
            survives(frame, PushMessage::decode, PushMessage::encode)
        }
        // Nothing is said there.
        (LinkProtocol::Push, Side::Acceptor) => false,
        (LinkProtocol::Directory, Side::Opener) => {
            survives(frame, DirectoryRequest::decode, DirectoryRequest::encode)
        }
        (LinkProtocol::Directory, Side::Acceptor) => {
            survives(frame, DirectoryAnswer::decode, DirectoryAnswer::encode)
        }
        (LinkProtocol::Training, Side::Opener) => {
            survives(frame, TrainerMessage::decode, TrainerMessage::encode)
        }
        (LinkProtocol::Training, Side::Acceptor) => {
            survives(frame, TrainingAnswer::decode, TrainingAnswer::encode)
        }
        (LinkProtocol::Averaging, Side::Opener) => {
            survives(frame, MemberMessage::decode, MemberMessage::encode)
        }
        (LinkProtocol::Averaging, Side::Acceptor) => false,
        (LinkProtocol::Adapter, Side::Opener) => {
            survives(frame, AdapterRequest::decode, AdapterRequest::encode)
        }
        (LinkProtocol::Adapter, Side::Acceptor) => {
            survives(frame, AdapterAnswer::decode, AdapterAnswer::encode)
        }
        (LinkProtocol::Local, Side::Opener) => {
            survives(frame, LocalRequest::decode, LocalRequest::encode)
        }
        (LinkProtocol::Local, Side::Acceptor) => {
            survives(frame, LocalAnswer::decode, LocalAnswer::encode)
        }
    }
}

/// What was understood is written so that the same is understood again.
fn survives<M: Clone + PartialEq + std::fmt::Debug>(
    frame: Frame,
    decode: fn(Frame) -> Result<M, ProtocolViolation>,
    encode: fn(M) -> Frame,
) -> bool {
    let Ok(message) = decode(frame) else {
        return false;
    };
    assert_eq!(decode(encode(message.clone())), Ok(message));
    true
}

/// A packed payload behind four bytes for the type and the shape of its tensor.
pub fn packed_tensor(data: &[u8]) -> bool {
    let Some((&[dtype, rows, width, wider], packed)) = data.split_first_chunk() else {
        return false;
    };
    let dtype = DType::ALL[usize::from(dtype) % DType::ALL.len()];
    let shape = vec![rows.into(), u16::from_le_bytes([width, wider]).into()];
    let Ok(tensor) = compression::unpack(dtype, shape.clone(), packed) else {
        return false;
    };
    assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape.as_slice()));
    if let Some(packed) = compression::pack(&tensor) {
        assert!(packed.len() < tensor.payload().len());
        assert_eq!(compression::unpack(dtype, shape, &packed), Ok(tensor));
    }
    true
}

/// An announcement: a signature and what it claims to be over; and the same bytes well signed, or
/// nothing behind the signature's check would ever be reached.
pub fn announcement(data: &[u8]) -> bool {
    if let Some((signature, bytes)) = data.split_first_chunk::<SIGNATURE_BYTES>() {
        let forged = SignedAnnouncement::new(Bytes::copy_from_slice(bytes), *signature);
        // It may be a good one; it must only not panic.
        let _ = forged.verify(NOW);
    }
    let key = key();
    let signature = key.sign(&[ANNOUNCEMENT_DOMAIN, data].concat()).to_bytes();
    let signed = SignedAnnouncement::new(Bytes::copy_from_slice(data), signature);
    let Ok(announcement) = signed.verify(NOW) else {
        return false;
    };
    assert!(announcement.span.end() <= announcement.block_count);
    assert!(announcement.expires > NOW);
    assert_eq!(announcement.sign(&key).verify(NOW), Ok(announcement));
    true
}

/// A GGUF file.
pub fn gguf_header(data: &[u8]) -> bool {
    let Ok(header) = gguf::parse_header(data) else {
        return false;
    };
    for (name, tensor) in header.tensors() {
        let end = tensor.offset.checked_add(tensor.bytes);
        assert!(end.is_some_and(|end| end <= data.len() as u64), "{name} lies in the file");
        assert_eq!(tensor.weight_type.tensor_bytes(&tensor.shape), Some(tensor.bytes), "{name}");
    }
    if let Ok(config) = ModelConfig::from_gguf(&header, None) {
        check_config(&config);
    }
    true
}

/// A safetensors file of which there is only the beginning: eight bytes say how long it is.
pub fn safetensors_header(data: &[u8]) -> bool {
    let Some((length, bytes)) = data.split_first_chunk::<LENGTH_BYTES>() else {
        return false;
    };
    let file_bytes = u64::from_le_bytes(*length);
    let Ok(header) = safetensors::parse_header(bytes, file_bytes) else {
        return false;
    };
    for (name, tensor) in header.tensors() {
        let end = tensor.offset.checked_add(tensor.bytes);
        assert!(end.is_some_and(|end| end <= file_bytes), "{name} lies in the file");
        match tensor.stored_type {
            StoredType::Supported(weight_type) => {
                assert_eq!(weight_type.tensor_bytes(&tensor.shape), Some(tensor.bytes), "{name}");
            }
            StoredType::Other(_) => {}
        }
    }
    true
}

/// A `config.json`, or the index of a sharded checkpoint.
pub fn config_json(data: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(data) else {
        return false;
    };
    if let Ok(config) = ModelConfig::from_json(text) {
        check_config(&config);
        return true;
    }
    WeightIndex::from_json(text).is_ok()
}

/// What the type of a configuration promises.
fn check_config(config: &ModelConfig) {
    assert!(config.block_count > 0 && config.hidden_size > 0 && config.vocabulary_size > 0);
    assert!(config.head_size > 0 && config.head_size.is_multiple_of(2));
    assert!(config.kv_head_count > 0 && config.head_count.is_multiple_of(config.kv_head_count));
    assert_eq!(config.attention_windows.len(), config.block_count as usize);
    assert!(!config.canonical_bytes().is_empty());
    assert!(config.kv_token_bytes_per_block() > 0);
}
