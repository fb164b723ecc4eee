//! Where pages lie: places of one size, many of them in each large page of the system.
//!
//! Attention walks over the pages of a session in every block, and where each lay somewhere in pages
//! of 4 KiB half of its time went into their translation (Zen 4, 512 tokens of 64 KiB each).

use std::alloc::{Layout, handle_alloc_error};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::large_pages::{LARGE_PAGE_BYTES, LargePages, Piece};

/// The fewest places of a slab, so that less than a ninth of it is left over.
const SLAB_SLOTS_MIN: usize = 8;

/// Gives out places, of any sizes, and takes them back.
///
/// A place comes from the oldest slab that has one, so that younger ones become empty and go back to
/// the system; one empty slab of a size stays, for a session that opens when another has closed.
#[derive(Debug, Default)]
pub(super) struct Slots(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By their age.
    slabs: BTreeMap<u64, Slab>,
    /// Those with places to give, by the size of these.
    open: BTreeSet<(usize, u64)>,
    made: u64,
}

/// Memory that is cut into places.
#[derive(Debug)]
struct Slab {
    pages: Arc<LargePages>,
    /// How many places there are.
    count: usize,
    /// Those from here on were never given out, and are zeros.
    fresh: usize,
    /// Those that came back.
    freed: Vec<usize>,
}

/// A place, which goes back when it is dropped. A clone is another place with the same in it.
#[derive(Debug)]
pub(super) struct Slot {
    piece: Piece,
    slab: u64,
    index: usize,
    slots: Arc<Slots>,
}

impl Slots {
    /// A place of so many bytes, whole cache lines of zeros.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Slot {
        let mut slot = self.take_as_it_was(bytes);
        if slot.1 {
            slot.0.bytes_mut().fill(0);
        }
        slot.0
    }

    /// A place, and whether something was in it.
    fn take_as_it_was(self: &Arc<Self>, bytes: usize) -> (Slot, bool) {
        let mut state = self.state();
        let State { slabs, open, made } = &mut *state;
        let oldest = open.range((bytes, 0)..=(bytes, u64::MAX)).next();
        let id = oldest.map(|&(_, id)| id).unwrap_or_else(|| {
            *made += 1;
            slabs.insert(*made, Slab::new(bytes));
            open.insert((bytes, *made));
            *made
        });
        let slab = slabs.get_mut(&id).expect("a slab that is open is there");
        let freed = slab.freed.pop();
        let index = freed.unwrap_or_else(|| {
            slab.fresh += 1;
            slab.fresh - 1
        });
        if slab.is_full() {
            open.remove(&(bytes, id));
        }
        #[expect(unsafe_code, reason = "several pages share one map")]
        // SAFETY: the place was never given out, or has come back, which is the last that happens to
        // its slot; places of different numbers do not overlap, since all of a slab have this size.
        let piece = unsafe { Piece::new(&slab.pages, index * bytes..(index + 1) * bytes) };
        (Slot { piece, slab: id, index, slots: Arc::clone(self) }, freed.is_some())
    }

    fn give_back(&self, bytes: usize, id: u64, index: usize) {
        let mut state = self.state();
        let State { slabs, open, .. } = &mut *state;
        let slab = slabs.get_mut(&id).expect("a slab stays as long as a place of it is out");
        slab.freed.push(index);
        let is_empty = slab.freed.len() == slab.fresh;
        let mut of_this_size = open.range((bytes, 0)..=(bytes, u64::MAX));
        if is_empty && of_this_size.any(|&(_, other)| other != id) {
            open.remove(&(bytes, id));
            slabs.remove(&id);
        } else {
            open.insert((bytes, id));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is changed but where memory has run out.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slab {
    fn new(slot_bytes: usize) -> Self {
        let wanted = slot_bytes.saturating_mul(SLAB_SLOTS_MIN).max(LARGE_PAGE_BYTES);
        let Some(pages) = LargePages::zeroed(wanted).map(Arc::new) else {
            handle_alloc_error(Layout::array::<u8>(wanted).unwrap_or(Layout::new::<u8>()));
        };
        let count = pages.len() / slot_bytes.max(1);
        Self { pages, count, fresh: 0, freed: Vec::new() }
    }

    fn is_full(&self) -> bool {
        self.fresh == self.count && self.freed.is_empty()
    }
}

impl Slot {
    pub(super) fn bytes(&self) -> &[u8] {
        self.piece.bytes()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.piece.bytes_mut()
    }
}

impl Clone for Slot {
    fn clone(&self) -> Self {
        let (mut slot, _) = self.slots.take_as_it_was(self.bytes().len());
        slot.bytes_mut().copy_from_slice(self.bytes());
        slot
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.give_back(self.bytes().len(), self.slab, self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = LARGE_PAGE_BYTES / 10;

    fn slabs(slots: &Slots) -> usize {
        slots.state().slabs.len()
    }

    #[test]
    fn nobody_has_what_another_has_and_all_begin_with_zeros() {
        let slots = Arc::new(Slots::default());
        let sizes = [64, BYTES / 64 * 64, 3 * LARGE_PAGE_BYTES, 128];
        for round in 1..4 {
            let mut all: Vec<_> =
                (0..40).flat_map(|_| sizes).map(|bytes| slots.take(bytes)).collect();
            for (index, slot) in (round..).zip(&mut all) {
                assert!(slot.bytes().iter().all(|byte| *byte == 0), "{index}");
                slot.bytes_mut().fill(index);
            }
            let copies = all.clone();
            for ((index, slot), copy) in (round..).zip(&mut all).zip(&copies) {
                assert!(slot.bytes().iter().chain(copy.bytes()).all(|byte| *byte == index));
                slot.bytes_mut().fill(0xee);
                assert!(copy.bytes().iter().all(|byte| *byte == index), "a copy is its own");
            }
        }
    }

    #[test]
    fn what_comes_back_is_given_out_again_before_more_is_mapped() {
        let slots = Arc::new(Slots::default());
        let mut all: Vec<_> = (0..30).map(|_| slots.take(BYTES)).collect();
        assert_eq!(slabs(&slots), 3);
        // One of each slab.
        for index in [25, 15, 5] {
            drop(all.remove(index));
        }
        let first = slots.take(BYTES);
        assert_eq!((first.slab, first.index), (1, 5), "the oldest is filled first");
        let _others = [slots.take(BYTES), slots.take(BYTES)];
        assert_eq!(slabs(&slots), 3);
        let _one_more = slots.take(BYTES);
        assert_eq!(slabs(&slots), 4);
    }

    #[test]
    fn empty_slabs_go_back_to_the_system_but_for_one() {
        let slots = Arc::new(Slots::default());
        let mut all: Vec<_> = (0..40).map(|_| slots.take(BYTES)).collect();
        assert_eq!(slabs(&slots), 4);
        let map = Arc::downgrade(all[39].piece.pages());
        // The youngest has no neighbour with room yet, and is the one that stays for now.
        all.truncate(30);
        assert!(map.upgrade().is_some());
        assert_eq!(slabs(&slots), 4);
        all.truncate(5);
        assert_eq!(slabs(&slots), 2, "one has places in use, one is empty");
        drop(all);
        assert_eq!(slabs(&slots), 1);
    }
}
