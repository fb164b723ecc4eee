//! The pages against a plain list of them.

use proptest::prelude::*;

use super::*;

const BLOCKS: (u32, u32) = (2, 6);

fn client(name: u8) -> PeerId {
    PeerId::from_public_key([name; 32])
}

fn scope(name: u8) -> Scope {
    let blocks = Span::new(BLOCKS.0, BLOCKS.1).unwrap();
    Scope { client: client(name), shard: ShardId(0), blocks, cache: DType::F32, adapter: None }
}

/// The digests of a text of so many pages, one of a few texts that differ from some page on.
fn text(text: u8, pages: usize) -> Vec<PageDigest> {
    let page = |page: usize| {
        let own = if page < usize::from(text) { 0 } else { text };
        PageDigest::from_bytes([
            own,
            u8::try_from(page).unwrap(),
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ])
    };
    (0..pages).map(page).collect()
}

fn at(seconds: u64) -> Time {
    Time::after_start(Duration::from_secs(seconds))
}

/// A session reads a text, leaves its pages, and ends.
fn leave(pages: &mut Pages, scope: Scope, digests: &[PageDigest], bytes: u64, now: Time) {
    let mut used = pages.take_over(scope, digests);
    for (number, digest) in (0..).zip(digests) {
        used.extend(pages.keep((SessionId::new(1), number), scope, (*digest, bytes), now));
    }
    pages.release(used, now);
}

#[test]
fn a_text_is_found_by_who_left_it_up_to_where_it_differs() {
    let mut pages = Pages::default();
    leave(&mut pages, scope(1), &text(0, 5), 10, at(0));
    assert_eq!(pages.take_over(scope(1), &text(0, 3)).len(), 3);
    assert_eq!(pages.take_over(scope(1), &text(2, 5)).len(), 2);
    let others = [
        scope(2),
        Scope { shard: ShardId(1), ..scope(1) },
        Scope { blocks: Span::new(2, 5).unwrap(), ..scope(1) },
        Scope { cache: DType::BF16, ..scope(1) },
        Scope { adapter: Some(AdapterId::from_bytes([7; 32])), ..scope(1) },
    ];
    for other in others {
        assert_eq!(pages.take_over(other, &text(0, 5)), [], "{other:?}");
    }
}

#[test]
fn of_a_text_the_end_is_given_up_first_and_what_is_in_use_never() {
    let mut pages = Pages::default();
    leave(&mut pages, scope(1), &text(0, 5), 10, at(0));
    leave(&mut pages, scope(1), &text(3, 5), 10, at(1));
    // Two pages of the older text that nobody else has, then the newer one from its end.
    assert_eq!(pages.idle_bytes(), 70);
    pages.shrink(50);
    let found = |pages: &mut Pages, which, count| {
        let used = pages.take_over(scope(1), &text(which, count));
        let found = used.len();
        pages.release(used, at(2));
        found
    };
    assert_eq!((found(&mut pages, 0, 5), found(&mut pages, 3, 5)), (3, 5));
    let used = pages.take_over(scope(1), &text(3, 4));
    pages.shrink(0);
    assert_eq!((used.len(), pages.idle_bytes(), pages.count()), (4, 0, 4));
    pages.release(used, at(3));
    assert_eq!(pages.idle_bytes(), 40);
}

#[test]
fn who_holds_most_makes_room() {
    let mut pages = Pages::default();
    leave(&mut pages, scope(1), &text(0, 3), 10, at(0));
    leave(&mut pages, scope(2), &text(0, 20), 10, at(5));
    pages.shrink(100);
    assert_eq!(pages.take_over(scope(1), &text(0, 3)).len(), 3, "older, and not pushed out");
    assert_eq!(pages.take_over(scope(2), &text(0, 20)).len(), 7);
}

#[test]
fn what_nobody_uses_goes_after_a_while() {
    let mut pages = Pages::default();
    leave(&mut pages, scope(1), &text(0, 3), 10, at(0));
    let used = pages.take_over(scope(1), &text(0, 2));
    let due = pages.expires().unwrap();
    assert_eq!(due, at(0) + IDLE_KEPT);
    pages.expire(due);
    assert_eq!((pages.count(), pages.expires()), (2, None));
    pages.release(used, due);
    pages.expire(due);
    assert_eq!(pages.count(), 2);
    pages.expire(due + IDLE_KEPT);
    assert_eq!((pages.count(), pages.idle_bytes()), (0, 0));
}

#[derive(Debug, Clone)]
enum Action {
    /// A session begins with what there is of a text and leaves what it read of it.
    Open {
        client: u8,
        text: u8,
        pages: usize,
    },
    /// A session uses no page from this one on.
    Cut {
        session: usize,
        page: usize,
    },
    Shrink {
        bytes: u64,
    },
    Wait {
        seconds: u64,
    },
    Clear,
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0..3u8, 0..4u8, 0..6usize)
            .prop_map(|(client, text, pages)| Action::Open { client, text, pages }),
        6 => (0..6usize, 0..6usize).prop_map(|(session, page)| Action::Cut { session, page }),
        2 => (0..200u64).prop_map(|bytes| Action::Shrink { bytes }),
        2 => (0..400u64).prop_map(|seconds| Action::Wait { seconds }),
        1 => Just(Action::Clear),
    ]
}

/// A page as the list has it.
#[derive(Debug, Clone, PartialEq)]
struct Listed {
    page: PageId,
    client: u8,
    digest: PageDigest,
    since: Time,
}

proptest! {
    /// What the accelerator is told adds up to what is kept and what of it is idle; nothing that is in
    /// use is given up but with the blocks; and of the idle pages, those of the client with most.
    #[test]
    fn pages_are_kept_used_and_given_up_as_a_list_has_it(
        actions in proptest::collection::vec(actions(), 0..60),
    ) {
        let mut pages = Pages::default();
        let mut listed: Vec<Listed> = Vec::new();
        let mut sessions: Vec<Vec<PageId>> = Vec::new();
        // What the accelerator has.
        let (mut held, mut charged) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        let mut now = at(0);
        for action in actions {
            match action {
                Action::Open { client, text: which, pages: count } => {
                    let digests = text(which, count);
                    let known = |digest: &PageDigest| {
                        listed.iter().find(|of| (of.client, of.digest) == (client, *digest))
                    };
                    let expected: Vec<_> = digests.iter().map_while(known).map(|of| of.page).collect();
                    let mut used = pages.take_over(scope(client), &digests);
                    prop_assert_eq!(&used, &expected);
                    for page in &used {
                        charged.remove(page);
                    }
                    for (number, digest) in (0..).zip(digests) {
                        let session = SessionId::new(sessions.len() as u128);
                        let kept = pages.keep((session, number), scope(client), (digest, 10), now);
                        if let Some(page) = kept {
                            listed.push(Listed { page, client, digest, since: now });
                            used.push(page);
                        }
                    }
                    sessions.push(used);
                }
                Action::Cut { session, page } => {
                    if let Some(used) = sessions.get_mut(session) {
                        let cut = used.split_off(page.min(used.len()));
                        for page in listed.iter_mut().filter(|of| cut.contains(&of.page)) {
                            page.since = now;
                        }
                        pages.release(cut, now);
                    }
                }
                Action::Shrink { bytes } => pages.shrink(bytes),
                Action::Wait { seconds } => {
                    now = now + Duration::from_secs(seconds);
                    pages.expire(now);
                }
                Action::Clear => pages.clear(),
            }
            for order in pages.orders() {
                match order {
                    PageOrder::Keep { page, .. } => prop_assert!(held.insert(page)),
                    PageOrder::Idle(page) => prop_assert!(held.contains(&page) && charged.insert(page)),
                    PageOrder::Drop(page) => {
                        prop_assert!(held.remove(&page));
                        charged.remove(&page);
                    }
                }
            }
            let used = |page: &PageId| sessions.iter().any(|session| session.contains(page));
            let dropped: Vec<_> =
                listed.iter().filter(|of| !held.contains(&of.page)).cloned().collect();
            listed.retain(|of| held.contains(&of.page));
            let idle: Vec<_> = listed.iter().filter(|of| !used(&of.page)).cloned().collect();
            match action {
                Action::Shrink { bytes } => {
                    prop_assert!(pages.idle_bytes() <= bytes);
                    let most = |client: u8| {
                        idle.iter().chain(&dropped).filter(|of| of.client == client).count()
                    };
                    for of in &dropped {
                        prop_assert!(!used(&of.page));
                        // It had most, or as much as most, when the last of its pages went.
                        let left = |client: u8| idle.iter().filter(|of| of.client == client).count();
                        prop_assert!((0..3).all(|other| left(other) <= left(of.client) + 1));
                        prop_assert!(most(of.client) > 0);
                        // Older pages of the same client go first.
                        prop_assert!(idle.iter().filter(|kept| kept.client == of.client)
                            .all(|kept| kept.since >= of.since));
                    }
                }
                Action::Wait { .. } => {
                    prop_assert!(dropped.iter().all(|of| !used(&of.page)));
                    prop_assert!(idle.iter().all(|of| now.since(of.since) < IDLE_KEPT));
                }
                Action::Clear => prop_assert!(listed.is_empty()),
                Action::Open { .. } | Action::Cut { .. } => prop_assert!(dropped.is_empty()),
            }
            let expected: std::collections::BTreeSet<_> = idle.iter().map(|of| of.page).collect();
            prop_assert_eq!(&charged, &expected);
            prop_assert_eq!(pages.idle_bytes(), 10 * idle.len() as u64);
            prop_assert_eq!(pages.count(), listed.len());
        }
    }
}
