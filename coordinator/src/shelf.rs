//! Which adapters of others a server keeps for them.
//!
//! Whoever asks may have a share of the room, in which its own oldest make place for its next ones. Where
//! all of the room is used, those go first that nobody but their owner has ever asked for, and among those
//! and among the others the one that was used longest ago. So a peer that comes under ever new names, and
//! only sends, drives out nothing that is in use.

use std::collections::BTreeMap;

use umbel_protocol::published::KeepRefusal;
use umbel_protocol::{AdapterId, PeerId};

/// Adapters that are kept at once. A peer provides no more keys of the hash table than 64.
pub const KEPT_MAX: usize = 48;

/// So many owners who fill their shares fill the room.
const OWNERS: u64 = 4;

/// What is kept, and what is coming.
#[derive(Debug)]
pub struct Shelf {
    bytes_max: u64,
    held: BTreeMap<AdapterId, Held>,
    uses: u64,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    owner: PeerId,
    bytes: u64,
    /// Not while it is coming.
    whole: bool,
    /// Somebody else has asked for it.
    wanted: bool,
    used: u64,
}

/// An adapter that was kept before a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Who asked to keep it.
    pub owner: PeerId,
    /// Which it is.
    pub id: AdapterId,
    /// The room that it takes.
    pub bytes: u64,
    /// Somebody else has asked for it.
    pub wanted: bool,
}

/// What becomes of an adapter that is to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offered {
    /// It is there.
    Held,
    /// There is room, once these are dropped, which the shelf does not count any more.
    Taken {
        /// Whose room it takes.
        drop: Vec<AdapterId>,
    },
    /// It is not kept.
    Refused(KeepRefusal),
}

impl Shelf {
    /// An empty one with so much room.
    #[must_use]
    pub const fn new(bytes_max: u64) -> Self {
        Self { bytes_max, held: BTreeMap::new(), uses: 0 }
    }

    /// The largest adapter that is kept, which is all that one owner may have.
    #[must_use]
    pub const fn share(&self) -> u64 {
        self.bytes_max / OWNERS
    }

    /// What is kept, or coming.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.held.values().map(|held| held.bytes).sum()
    }

    /// Somebody asks to keep an adapter. Room that is taken for it is given back by [`Shelf::failed`].
    pub fn offer(&mut self, owner: PeerId, id: AdapterId, bytes: u64) -> Offered {
        if bytes > self.share() {
            return Offered::Refused(KeepRefusal::TooLarge);
        }
        self.uses += 1;
        if let Some(held) = self.held.get_mut(&id) {
            held.used = self.uses;
            return if held.whole { Offered::Held } else { Offered::Refused(KeepRefusal::Full) };
        }
        let mut drop = Vec::new();
        let own = self.make_room(&mut drop, |held| held.owner == owner, self.share() - bytes);
        if !own {
            return Offered::Refused(KeepRefusal::ShareUsed);
        }
        if !self.make_room(&mut drop, |_| true, self.bytes_max - bytes) {
            return Offered::Refused(KeepRefusal::Full);
        }
        for id in &drop {
            self.held.remove(id);
        }
        if self.held.len() >= KEPT_MAX {
            let Some(oldest) = self.oldest(&[], |_| true) else {
                return Offered::Refused(KeepRefusal::Full);
            };
            self.held.remove(&oldest);
            drop.push(oldest);
        }
        let held = Held { owner, bytes, whole: false, wanted: false, used: self.uses };
        self.held.insert(id, held);
        Offered::Taken { drop }
    }

    /// All of it has come.
    pub fn came(&mut self, id: AdapterId) {
        if let Some(held) = self.held.get_mut(&id) {
            held.whole = true;
        }
    }

    /// It does not come, or is no longer there.
    pub fn failed(&mut self, id: AdapterId) {
        self.held.remove(&id);
    }

    /// Whether it is there, and whole.
    #[must_use]
    pub fn has(&self, id: AdapterId) -> bool {
        self.held.get(&id).is_some_and(|held| held.whole)
    }

    /// Somebody asks for it; whether it is there, and nobody but its owner had asked before.
    pub fn asked(&mut self, id: AdapterId, by: PeerId) -> bool {
        self.uses += 1;
        let Some(held) = self.held.get_mut(&id).filter(|held| held.whole) else { return false };
        held.used = self.uses;
        by != held.owner && !std::mem::replace(&mut held.wanted, true)
    }

    /// Takes up those that were kept before, of which that used longest ago comes first. Returns those for
    /// which there is no room: of all the same that would have gone for others.
    pub fn restore(&mut self, mut kept: Vec<Kept>) -> Vec<AdapterId> {
        kept.sort_by_key(|kept| kept.wanted);
        let (mut bytes, mut fitting, mut left) = (self.bytes(), Vec::new(), Vec::new());
        for kept in kept.into_iter().rev() {
            let with_it = bytes.saturating_add(kept.bytes);
            if with_it <= self.bytes_max && self.held.len() + fitting.len() < KEPT_MAX {
                bytes = with_it;
                fitting.push(kept);
            } else {
                left.push(kept.id);
            }
        }
        for Kept { owner, id, bytes, wanted } in fitting.into_iter().rev() {
            self.uses += 1;
            let held = Held { owner, bytes, whole: true, wanted, used: self.uses };
            self.held.insert(id, held);
        }
        left
    }

    /// Drops the oldest of some until the rest of them takes no more than `bytes_max`, or says that what is
    /// coming takes more.
    fn make_room(
        &self,
        drop: &mut Vec<AdapterId>,
        of: impl Fn(&Held) -> bool,
        bytes_max: u64,
    ) -> bool {
        loop {
            let staying = self.held.iter().filter(|(id, held)| of(held) && !drop.contains(id));
            let bytes: u64 = staying.map(|(_, held)| held.bytes).sum();
            if bytes <= bytes_max {
                return true;
            }
            let Some(oldest) = self.oldest(drop, &of) else { return false };
            drop.push(oldest);
        }
    }

    /// The first to go of some that are whole, but for those that go already.
    fn oldest(&self, going: &[AdapterId], of: impl Fn(&Held) -> bool) -> Option<AdapterId> {
        let mine = |(id, held): &(&AdapterId, &Held)| held.whole && of(held) && !going.contains(id);
        let candidates = self.held.iter().filter(mine);
        candidates.min_by_key(|(_, held)| (held.wanted, held.used)).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests;
