//! My view of the swarm: the newest valid announcement of each server.

use std::collections::BTreeMap;

use umbel_protocol::announcement::{Announcement, AnnouncementError, SignedAnnouncement, UnixTime};
use umbel_protocol::{ModelId, PeerId};

use super::health::Health;
use crate::Time;

/// Most announcements of others that a directory keeps: at 4 KiB each, 4 MiB; a swarm of the thousand
/// servers that the public network of Petals never reached fits.
pub const ANNOUNCEMENTS_MAX: usize = 1024;

/// Most models that one peer may announce, so that one key cannot fill the directory.
pub const MODELS_PER_PEER_MAX: usize = 16;

/// The newest valid announcement of each (peer, model).
#[derive(Debug, Default)]
pub struct Directory {
    /// Whose directory it is, if it announces itself.
    own: Option<PeerId>,
    /// A server that waits for whoever has this directory before it leaves.
    stays: Option<PeerId>,
    entries: BTreeMap<(PeerId, ModelId), Entry>,
}

#[derive(Debug)]
struct Entry {
    announcement: Announcement,
    signed: SignedAnnouncement,
}

/// What an announcement did to the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// A newer announcement of a server that was known, at the same place and with the same blocks.
    News,
    /// The server was not known, or its announcement had expired or said that it was leaving, or
    /// it now listens elsewhere or serves other blocks: it has probably started anew, and
    /// [`Health::returned`] should hear of it.
    Returned(PeerId),
    /// The same or a newer announcement was here already.
    Known,
}

impl Directory {
    /// A directory without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The directory of a server, with room for what that one itself announces, however many others
    /// there are.
    #[must_use]
    pub fn of_server(own: PeerId) -> Self {
        Self { own: Some(own), ..Self::default() }
    }

    /// Checks an announcement and takes it up if it is newer than what is here.
    ///
    /// # Errors
    /// [`RefusedAnnouncement`] where it is invalid, its signer announces too many models, or the
    /// directory is full.
    pub fn insert(
        &mut self,
        signed: SignedAnnouncement,
        now: UnixTime,
    ) -> Result<Inserted, RefusedAnnouncement> {
        let announcement = signed.verify(now)?;
        let key = (announcement.peer, announcement.model);
        let inserted = match self.entries.get(&key).map(|known| &known.announcement) {
            Some(known) if known.issued >= announcement.issued => return Ok(Inserted::Known),
            Some(known) if is_same_run(known, &announcement, now) => Inserted::News,
            Some(_) => Inserted::Returned(announcement.peer),
            None => {
                self.make_room(announcement.peer, now)?;
                Inserted::Returned(announcement.peer)
            }
        };
        self.entries.insert(key, Entry { announcement, signed });
        Ok(inserted)
    }

    /// Counts a server among the candidates also while it says that it leaves: it waits for whoever has this
    /// directory.
    pub const fn stay_with(&mut self, server: PeerId) {
        self.stays = Some(server);
    }

    /// The servers of `model` that a route may use: announced, not expired, not about to leave
    /// (but see [`Directory::stay_with`]), and not failing. Whoever plans a route takes its servers
    /// from here and nowhere else, so that a peer which failed is gone for all in the same moment.
    pub fn candidates<'a>(
        &'a self,
        health: &'a Health,
        model: ModelId,
        now: Time,
        unix_now: UnixTime,
    ) -> impl Iterator<Item = &'a Announcement> {
        self.announcements(Some(model)).filter(move |server| {
            let leaves = server.draining && self.stays != Some(server.peer);
            server.expires > unix_now && !leaves && health.is_usable(server.peer, now)
        })
    }

    /// Forgets what has expired.
    pub fn expire(&mut self, now: UnixTime) {
        self.entries.retain(|_, entry| entry.announcement.expires > now);
    }

    /// Forgets what `peer` announced of `model`.
    pub fn remove(&mut self, peer: PeerId, model: ModelId) {
        self.entries.remove(&(peer, model));
    }

    /// The announcements of `model`, or of every model, in the order of peers.
    pub fn announcements(&self, model: Option<ModelId>) -> impl Iterator<Item = &Announcement> {
        self.entries(model).map(|entry| &entry.announcement)
    }

    /// The same as they were signed, to hand on.
    pub fn signed(&self, model: Option<ModelId>) -> impl Iterator<Item = &SignedAnnouncement> {
        self.entries(model).map(|entry| &entry.signed)
    }

    fn entries(&self, model: Option<ModelId>) -> impl Iterator<Item = &Entry> {
        let wanted = move |of: &ModelId| model.is_none_or(|model| model == *of);
        self.entries.iter().filter(move |((_, of), _)| wanted(of)).map(|(_, entry)| entry)
    }

    /// Room for one more of `peer`.
    ///
    /// Nobody that is known makes way: names cost nothing, and whatever an announcement says of itself
    /// its signer chooses, so that any order among them would let as many names as fill a directory
    /// drive out all others. Those that are here stay for as long as they say that they are there.
    fn make_room(&mut self, peer: PeerId, now: UnixTime) -> Result<(), RefusedAnnouncement> {
        self.expire(now);
        if self.entries.keys().filter(|(of, _)| *of == peer).count() >= MODELS_PER_PEER_MAX {
            return Err(RefusedAnnouncement::TooManyModels { peer });
        }
        let is_own = |of: PeerId| self.own == Some(of);
        let of_others = self.entries.keys().filter(|(of, _)| !is_own(*of)).count();
        if of_others >= ANNOUNCEMENTS_MAX && !is_own(peer) {
            return Err(RefusedAnnouncement::Full { peer });
        }
        Ok(())
    }
}

/// Whether `newer` reads as if the server had gone on since `known`.
fn is_same_run(known: &Announcement, newer: &Announcement, now: UnixTime) -> bool {
    known.expires > now
        && (!known.draining || newer.draining)
        && known.addresses == newer.addresses
        && known.span == newer.span
}

/// An announcement that the directory did not take.
#[derive(Debug, thiserror::Error)]
pub enum RefusedAnnouncement {
    /// It is malformed, expired, or not signed by the peer that it speaks of.
    #[error(transparent)]
    Invalid(#[from] AnnouncementError),
    /// Its signer announces more models than anybody needs.
    #[error("{peer} announces more than {MODELS_PER_PEER_MAX} models")]
    TooManyModels {
        /// The signer.
        peer: PeerId,
    },
    /// So many others are known.
    #[error("{peer} is one too many: {ANNOUNCEMENTS_MAX} announcements are known")]
    Full {
        /// The signer.
        peer: PeerId,
    },
}

#[cfg(test)]
mod tests;
