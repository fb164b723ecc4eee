//! Rooms that are filled in turn and at random.

use proptest::prelude::*;

use super::*;

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

fn id(number: u16) -> AdapterId {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&number.to_le_bytes());
    AdapterId::from_bytes(bytes)
}

fn taken(drop: &[u16]) -> Offered {
    Offered::Taken { drop: drop.iter().map(|number| id(*number)).collect() }
}

/// Offers one that then comes.
fn put(shelf: &mut Shelf, owner: u8, number: u16, bytes: u64) -> Offered {
    let offered = shelf.offer(peer(owner), id(number), bytes);
    shelf.came(id(number));
    offered
}

#[test]
fn each_owner_has_a_share_in_which_its_oldest_goes_first() {
    let mut shelf = Shelf::new(400);
    assert_eq!(shelf.offer(peer(1), id(1), 101), Offered::Refused(KeepRefusal::TooLarge));
    assert_eq!(put(&mut shelf, 1, 1, 50), taken(&[]));
    assert_eq!(put(&mut shelf, 1, 2, 50), taken(&[]));
    assert_eq!(put(&mut shelf, 1, 1, 50), Offered::Held, "which counts as a use");
    assert_eq!(put(&mut shelf, 1, 3, 60), taken(&[2, 1]), "the other's room is not touched");
    assert_eq!(put(&mut shelf, 2, 4, 100), taken(&[]));
    assert_eq!(shelf.bytes(), 160);
}

#[test]
fn what_is_coming_keeps_its_room_until_it_fails() {
    let mut shelf = Shelf::new(400);
    assert_eq!(shelf.offer(peer(1), id(1), 80), taken(&[]));
    assert_eq!(shelf.offer(peer(1), id(2), 30), Offered::Refused(KeepRefusal::ShareUsed));
    assert_eq!(shelf.offer(peer(9), id(1), 80), Offered::Refused(KeepRefusal::Full));
    assert!(!shelf.asked(id(1), peer(5)), "it is not there yet");
    for owner in 2..=4 {
        assert_eq!(shelf.offer(peer(owner), id(owner.into()), 100), taken(&[]));
    }
    assert_eq!(shelf.offer(peer(5), id(5), 30), Offered::Refused(KeepRefusal::Full));
    shelf.failed(id(1));
    assert_eq!(shelf.offer(peer(5), id(5), 30), taken(&[]));
}

#[test]
fn who_comes_under_ever_new_names_drives_out_only_what_nobody_asks_for() {
    let mut shelf = Shelf::new(400);
    put(&mut shelf, 1, 1, 100);
    put(&mut shelf, 2, 2, 100);
    assert!(!shelf.asked(id(1), peer(1)), "that of the owner does not count");
    assert!(shelf.asked(id(2), peer(7)));
    assert!(!shelf.asked(id(2), peer(8)), "it was known to be wanted");
    for number in 10..60 {
        let owner = u8::try_from(number).unwrap();
        assert!(matches!(put(&mut shelf, owner, number, 100), Offered::Taken { .. }));
    }
    assert!(!shelf.held.contains_key(&id(1)));
    assert!(shelf.held.contains_key(&id(2)), "it is in use");
    assert_eq!(shelf.bytes(), 400);
}

#[test]
fn small_ones_are_bounded_by_their_number() {
    let mut shelf = Shelf::new(1 << 20);
    for number in 0..100 {
        put(&mut shelf, 1, number, 1);
    }
    assert_eq!(shelf.held.len(), KEPT_MAX);
    assert!(shelf.held.contains_key(&id(99)) && !shelf.held.contains_key(&id(51)));
}

#[test]
fn what_is_used_most_stays_where_there_is_less_room_than_before() {
    let kept = |number, bytes, wanted| Kept { owner: peer(1), id: id(number), bytes, wanted };
    let mut shelf = Shelf::new(6);
    let before = vec![
        kept(1, 2, true),
        kept(2, 2, false),
        kept(3, 2, true),
        kept(4, 2, false),
        kept(5, 2, false),
    ];
    assert_eq!(shelf.restore(before), [id(4), id(2)], "those that are wanted, and the last used");
    assert_eq!(shelf.bytes(), 6);
    let order: Vec<_> = std::iter::from_fn(|| {
        let next = shelf.oldest(&[], |_| true)?;
        shelf.failed(next);
        Some(next)
    })
    .collect();
    assert_eq!(order, [id(5), id(1), id(3)], "they go in the order of before");

    let mut shelf = Shelf::new(3);
    let small = (0..60).map(|number| kept(number, 0, false)).chain([kept(99, 4, true)]);
    let left = shelf.restore(small.collect());
    assert_eq!((left.len(), left[0]), (61 - KEPT_MAX, id(99)), "no more room than there is");
    assert!(shelf.has(id(59)) && !shelf.has(id(0)));
}

proptest! {
    #[test]
    fn neither_room_nor_shares_are_ever_exceeded(
        offers in prop::collection::vec((0..6_u8, 0..30_u16, 0..40_u64, 0..4_u8), 1..200),
    ) {
        let mut shelf = Shelf::new(100);
        for (owner, number, bytes, what) in offers {
            match what {
                0 => shelf.failed(id(number)),
                1 => { shelf.asked(id(number), peer(owner)); }
                _ => {
                    let before: Vec<_> = shelf.held.keys().copied().collect();
                    if let Offered::Taken { drop } = shelf.offer(peer(owner), id(number), bytes) {
                        prop_assert!(drop.iter().all(|id| before.contains(id)));
                        prop_assert!(drop.iter().all(|id| !shelf.held.contains_key(id)));
                    }
                    if what == 2 {
                        shelf.came(id(number));
                    }
                }
            }
            prop_assert!(shelf.bytes() <= 100 && shelf.held.len() <= KEPT_MAX);
            for owner in 0..6 {
                let own = shelf.held.values().filter(|held| held.owner == peer(owner));
                prop_assert!(own.map(|held| held.bytes).sum::<u64>() <= shelf.share());
            }
        }
    }
}
