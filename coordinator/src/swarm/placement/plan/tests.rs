//! Swarms in which only several moves together help.

use super::*;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

fn server(name: u8, start: u32, end: u32, rate: f64) -> ServedSpan {
    let (peer, span) = (PeerId::from_public_key([name; 32]), Some(span(start, end)));
    ServedSpan { peer, span, moving_to: None, rate, held_max: 2 * (end - start), joined: None }
}

fn own(me: ServedSpan) -> Own<'static> {
    let block_limit = me.span.unwrap().block_count();
    Own { rate: me.rate, block_limit, missing_bytes: &[], bytes_per_second: 0.0 }
}

fn found(me: ServedSpan, others: &[ServedSpan], block_count: u32) -> Option<Proposal> {
    let view = View::new(block_count, others.iter().copied());
    (0..5).find_map(|seed| propose(&view, &own(me), me, &mut Random::new(seed)))
}

/// The fast server stands where it has help, the slow one where it has none; neither may leave.
fn in_each_others_place() -> [ServedSpan; 3] {
    let helper = ServedSpan { held_max: 0, ..server(1, 1, 2, 40.0) };
    [helper, server(2, 0, 2, 90.0), server(3, 2, 4, 10.0)]
}

#[test]
fn two_change_places() {
    let [helper, fast, slow] = in_each_others_place();
    for (me, other) in [(fast, slow), (slow, fast)] {
        let others = [helper, other];
        let view = View::new(4, others);
        assert_eq!(super::super::consider_move(&view, &own(me), me.span.unwrap()), None);
        let proposal = found(me, &others, 4).unwrap();
        assert_eq!(proposal.of(fast.peer).unwrap().to, span(2, 4));
        assert_eq!(proposal.of(slow.peer).unwrap().to, span(0, 2));
        assert_eq!(proposal.moves.iter().filter(|of| of.via.is_some()).count(), 1);
        assert_eq!(proposal.moves.len(), 2);
        assert!(pays_for_me(&view, &own(me), me, &proposal));
    }
}

#[test]
fn who_is_not_to_be_asked_is_not() {
    let [helper, fast, slow] = in_each_others_place();
    let pinned = ServedSpan { held_max: 0, ..slow };
    assert_eq!(found(fast, &[helper, pinned], 4), None);
    let moving = ServedSpan { moving_to: slow.span, ..slow };
    assert_eq!(found(fast, &[helper, moving], 4), None);
}

#[test]
fn others_may_be_asked_by_one_that_stays() {
    let [helper, fast, slow] = in_each_others_place();
    let proposal = found(helper, &[fast, slow], 4).unwrap();
    assert!(proposal.of(helper.peer).is_none() && proposal.moves.len() == 2);
}

#[test]
fn without_room_for_more_than_a_span_two_cannot_change_places() {
    let [helper, fast, slow] = in_each_others_place();
    let tight = |server: ServedSpan| ServedSpan { held_max: 2, ..server };
    assert_eq!(found(tight(fast), &[helper, tight(slow)], 4), None);
}

#[test]
fn a_hole_is_filled_by_moving_up_one_after_the_other() {
    // Block 7 has no server; the one next to it is needed at block 4, which ours can take over.
    let me = server(9, 1, 4, 9.0);
    let proposal = found(me, &[server(1, 0, 3, 9.0), server(2, 4, 7, 9.0)], 8).unwrap();
    let to = |name: u8| proposal.of(PeerId::from_public_key([name; 32])).map(|of| of.to);
    assert_eq!(to(2), Some(span(5, 8)));
    assert!(to(9).is_some_and(|to| to.contains(4) && to.contains(3)), "{proposal:?}");
}

#[test]
fn a_swarm_without_room_for_the_model_is_left_alone() {
    let me = server(9, 0, 3, 9.0);
    assert_eq!(found(me, &[server(1, 0, 3, 9.0)], 8), None);
}

#[test]
fn what_is_asked_for_must_help_and_name_only_those_who_are_there() {
    let [helper, fast, slow] = in_each_others_place();
    let asked = |server: ServedSpan, to: Span| ProposedMove { peer: server.peer, via: None, to };
    let judge = |moves: Vec<ProposedMove>, others: &[ServedSpan], own: &Own<'_>| {
        let proposal = Proposal { moves, agreed: false };
        pays_for_me(&View::new(4, others.iter().copied()), own, fast, &proposal)
    };
    let both = vec![asked(fast, span(2, 4)), asked(slow, span(0, 2))];
    assert!(judge(both.clone(), &[helper, slow], &own(fast)));
    assert!(!judge(both.clone(), &[helper], &own(fast)), "one is not there");
    assert!(!judge(vec![both[1]], &[helper, slow], &own(fast)), "it is not asked");
    assert!(!judge(vec![both[0]], &[helper, slow], &own(fast)), "blocks would be left");
    let missing = [1 << 40; 4];
    let far = Own { missing_bytes: &missing, bytes_per_second: 1e6, ..own(fast) };
    assert!(!judge(both, &[helper, slow], &far), "the download costs more than the gain");
}

#[test]
fn a_fast_server_goes_along_for_a_gain_that_is_small_beside_its_rate() {
    let [helper, fast, slow] = in_each_others_place();
    let fast = ServedSpan { rate: 4000.0, ..fast };
    let asked = |server: ServedSpan, to: Span| ProposedMove { peer: server.peer, via: None, to };
    let moves = vec![asked(fast, span(2, 4)), asked(slow, span(0, 2))];
    let (view, proposal) = (View::new(4, [helper, slow]), Proposal { moves, agreed: false });
    // The swarm carries 5 tokens a second more, of the 1,000 that this server gives each block.
    assert!(pays_for_me(&view, &own(fast), fast, &proposal));
    // Two blocks: at 14,400 s for all that both give, 5 tokens a second are worth 71 s.
    let pays = |seconds: u64| {
        let missing = [500_000 * seconds; 4];
        let far = Own { missing_bytes: &missing, bytes_per_second: 1e6, ..own(fast) };
        pays_for_me(&view, &far, fast, &proposal)
    };
    assert!(pays(71) && !pays(73));
}
