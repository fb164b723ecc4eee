//! An announcement as it travels: the bytes that were signed, and the signature.

use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::Signature;

use prost::Message as _;

use super::{Announcement, AnnouncementError, NextHopLatency, Proposal, Throughput, UnixTime};
use crate::generated as v1;
use crate::{PeerId, wire};

/// Most bytes of an announcement. 500 bytes are usual; 16 next hops take 700, 16 adapters with
/// the longest names 1,060, and 8 relayed addresses of 230 bytes fit beside them. A proposal, which
/// few make and for minutes only, takes up to 900. What does not fit is cut when it is signed.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 4 << 10;

/// Most bytes of a model's name.
pub const MODEL_NAME_BYTES_MAX: usize = 96;

/// Most bytes of the software's version.
pub const VERSION_BYTES_MAX: usize = 64;

/// Most next hops of an announcement: a server can keep so many figures fresh with a ping every
/// few seconds, and they take a sixth of the announcement.
pub const NEXT_HOPS_MAX: usize = 16;

/// Most adapters of an announcement.
pub const ADAPTERS_MAX: usize = 16;

/// Most bytes of an adapter's name: that of a repository at Hugging Face usually has 20 to 50.
pub const ADAPTER_BYTES_MAX: usize = 64;

/// Most blocks of a model. The deepest known ones have 126 (Llama 3.1 405B) to 160; readers may
/// spend time and memory in proportion to this.
pub const BLOCK_COUNT_MAX: u32 = 4096;

/// Longest time for which an announcement may hold: a server that has died is believed in no
/// longer than that, and a name that fills a directory says so again and again. Servers announce a
/// minute.
pub const LIFETIME_MAX: Duration = Duration::from_secs(5 * 60);

/// How far ahead the clock of a signer may be: machines without NTP drift by seconds a day.
pub const AHEAD_MAX: Duration = Duration::from_secs(2 * 60);

/// Goes before what is signed, so that no signature for another purpose passes for this one.
const DOMAIN: &[u8] = b"umbel announcement v1\0";

/// An announcement as it was signed. It is handed on in these very bytes, so that fields that
/// this version does not know reach those who do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedAnnouncement {
    bytes: Bytes,
    signature: [u8; 64],
}

impl SignedAnnouncement {
    /// Bytes and a signature that nobody has checked.
    #[must_use]
    pub const fn new(bytes: Bytes, signature: [u8; 64]) -> Self {
        Self { bytes, signature }
    }

    /// The bytes that were signed.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The Ed25519 signature over the domain and the bytes.
    #[must_use]
    pub const fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    /// Checks everything that can be checked and says what was announced.
    ///
    /// # Errors
    /// [`AnnouncementError`] where the announcement must not be believed at the time `now`.
    pub fn verify(&self, now: UnixTime) -> Result<Announcement, AnnouncementError> {
        if self.bytes.len() > ANNOUNCEMENT_BYTES_MAX {
            return Err(AnnouncementError::TooLarge { bytes: self.bytes.len() });
        }
        let announcement =
            wire::decode_header::<v1::Announcement>(self.bytes.clone(), "announcement")?;
        let peer = wire::peer_id(&announcement.peer)?;
        self.verify_signature(peer)?;
        let announcement = parse(announcement, peer)?;
        check_time(&announcement, now)?;
        check_claims(&announcement)?;
        Ok(announcement)
    }

    /// Strictly: neither keys of small order nor signatures that can be altered pass.
    fn verify_signature(&self, peer: PeerId) -> Result<(), AnnouncementError> {
        let wrong = AnnouncementError::WrongSignature { peer };
        let Some(key) = peer.verifying_key() else {
            return Err(wrong);
        };
        let signature = Signature::from_bytes(&self.signature);
        key.verify_strict(&signed_message(&self.bytes), &signature).map_err(|_| wrong)
    }

    pub(crate) fn to_wire(&self) -> v1::SignedAnnouncement {
        v1::SignedAnnouncement {
            announcement: self.bytes.clone(),
            signature: Bytes::copy_from_slice(&self.signature),
        }
    }

    pub(crate) fn from_wire(
        signed: &v1::SignedAnnouncement,
    ) -> Result<Self, crate::ProtocolViolation> {
        wire::at_most(
            "bytes in an announcement",
            ANNOUNCEMENT_BYTES_MAX,
            signed.announcement.len(),
        )?;
        let signature = wire::array(&signed.signature, "the signature")?;
        // A copy, so that one announcement does not keep a whole answer in memory.
        Ok(Self::new(Bytes::copy_from_slice(&signed.announcement), signature))
    }
}

/// What the signature is over.
pub(super) fn signed_message(bytes: &[u8]) -> Vec<u8> {
    [DOMAIN, bytes].concat()
}

/// Takes from the lists what must go for the bytes to be few enough. Without lists, and with one
/// address, an announcement has at most 1,800 bytes.
pub(super) fn cut_to_size(announcement: &mut v1::Announcement) {
    while announcement.encoded_len() > ANNOUNCEMENT_BYTES_MAX {
        if announcement.next_hops.pop().is_some() {
            continue;
        }
        if announcement.addresses.len() > 1 {
            announcement.addresses.pop();
        } else if announcement.adapters.pop().is_none() {
            return;
        }
    }
}

/// Whether an adapter can be announced under this name: a shortened one would be another's.
pub(super) fn is_adapter_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= ADAPTER_BYTES_MAX && !name.chars().any(char::is_control)
}

fn parse(
    announcement: v1::Announcement,
    peer: PeerId,
) -> Result<Announcement, crate::ProtocolViolation> {
    wire::not_longer("the model's name", MODEL_NAME_BYTES_MAX, &announcement.model_name)?;
    wire::not_longer("the version", VERSION_BYTES_MAX, &announcement.version)?;
    wire::at_most("next hops", NEXT_HOPS_MAX, announcement.next_hops.len())?;
    wire::at_most("adapters", ADAPTERS_MAX, announcement.adapters.len())?;
    for adapter in &announcement.adapters {
        wire::not_longer("an adapter's name", ADAPTER_BYTES_MAX, adapter)?;
        wire::required((!adapter.is_empty()).then_some(()), "an adapter's name")?;
    }
    let time = |ns| UnixTime::after_epoch(Duration::from_nanos(ns));
    Ok(Announcement {
        peer,
        model: wire::model_id(&announcement.model)?,
        model_name: announcement.model_name,
        span: wire::span(announcement.span)?,
        block_count: announcement.block_count,
        addresses: wire::addresses(announcement.addresses)?,
        version: announcement.version,
        throughput: Throughput {
            decode_tokens_per_second: announcement.decode_tokens_per_second,
            prefill_tokens_per_second: announcement.prefill_tokens_per_second,
            decode_batch_tokens_per_second: announcement.decode_batch_tokens_per_second,
            network_bytes_per_second: announcement.network_bytes_per_second,
        },
        kv_tokens_free: announcement.kv_tokens_free,
        queue_depth: announcement.queue_depth,
        draining: announcement.draining,
        issued: time(announcement.issued_ns),
        expires: time(announcement.expires_ns),
        next_hops: announcement.next_hops.iter().map(next_hop).collect::<Result<_, _>>()?,
        adapters: announcement.adapters,
        moving_to: announcement.moving_to.map(|span| wire::span(Some(span))).transpose()?,
        held_blocks_max: announcement.held_blocks_max,
        proposal: announcement.proposal.map(Proposal::from_wire).transpose()?,
        joined: match announcement.joined.as_ref() {
            [] => None,
            bytes => Some(wire::peer_id(bytes)?),
        },
        holds_ends: announcement.holds_ends,
    })
}

fn next_hop(next: &v1::NextHopLatency) -> Result<NextHopLatency, crate::ProtocolViolation> {
    Ok(NextHopLatency {
        peer: wire::peer_id(&next.peer)?,
        round_trip: Duration::from_nanos(next.round_trip_ns),
    })
}

fn check_time(announcement: &Announcement, now: UnixTime) -> Result<(), AnnouncementError> {
    let &Announcement { peer, issued, expires, .. } = announcement;
    if expires <= now {
        return Err(AnnouncementError::Expired { peer, ago: now.since(expires) });
    }
    let ahead = issued.since(now);
    if ahead > AHEAD_MAX {
        return Err(AnnouncementError::FromTheFuture { peer, ahead });
    }
    let lifetime = expires.since(issued);
    if lifetime > LIFETIME_MAX {
        return Err(AnnouncementError::LifetimeTooLong { peer, lifetime });
    }
    Ok(())
}

fn check_claims(announcement: &Announcement) -> Result<(), AnnouncementError> {
    let &Announcement { peer, span, block_count, throughput, moving_to, .. } = announcement;
    let proposed = announcement.proposal.iter().flat_map(|proposal| &proposal.moves);
    let proposed = proposed.flat_map(|of| [of.via, Some(of.to)]);
    for span in [Some(span), moving_to].into_iter().chain(proposed).flatten() {
        if span.end() > block_count || block_count > BLOCK_COUNT_MAX {
            return Err(AnnouncementError::WrongBlocks { peer, span, block_count });
        }
    }
    let Throughput {
        decode_tokens_per_second: decode,
        prefill_tokens_per_second: prefill,
        decode_batch_tokens_per_second: batch,
        network_bytes_per_second: _,
    } = throughput;
    if [decode, prefill, batch].iter().any(|speed| !speed.is_finite() || *speed < 0.0) {
        return Err(AnnouncementError::WrongThroughput { peer });
    }
    let texts =
        [("its model's name", &announcement.model_name), ("its version", &announcement.version)];
    let adapters = announcement.adapters.iter().map(|name| ("an adapter's name", name));
    for (field, text) in texts.into_iter().chain(adapters) {
        if text.chars().any(char::is_control) {
            return Err(AnnouncementError::ControlCharacters { peer, field });
        }
    }
    Ok(())
}
