//! Two servers change places: what each says, and what it does when the other does not.

use umbel_protocol::announcement::{Proposal, ProposedMove};

use super::*;

/// What the fast server, 9, sees: it stands on blocks 0..4, where it has help on all but one, and
/// the slow one on 4..8 alone.
fn others(slow: ServedSpan) -> View {
    let pinned = ServedSpan { held_max: 0, ..server(1, 1, 4, 400.0) };
    View::new(8, [pinned, slow])
}

fn slow() -> ServedSpan {
    server(3, 4, 8, 10.0)
}

/// What the slow one would ask for.
fn exchange(agreed: bool) -> Proposal {
    let fast = ProposedMove { peer: peer(9), via: Some(span(0, 8)), to: span(4, 8) };
    let slow = ProposedMove { peer: peer(3), via: None, to: span(0, 4) };
    Proposal { moves: vec![fast, slow], agreed }
}

fn asking(view: View, by: u8, proposal: Proposal) -> View {
    view.with_proposals([(peer(by), proposal)])
}

fn look(bench: &mut Bench, view: View) -> Vec<Output> {
    assert_eq!(bench.wait(), [Output::Look]);
    bench.see_view(view)
}

fn moving_to(to: Span) -> Output {
    Output::Announce(Intention { moving_to: Some(to), ..Intention::default() })
}

/// That it goes there if all others move who are asked by 3.
fn would_move_to(to: Span) -> Output {
    let (moving_to, joined) = (Some(to), Some(peer(3)));
    Output::Announce(Intention { moving_to, joined, ..Intention::default() })
}

/// Looks until it proposes something; what.
fn proposed(bench: &mut Bench) -> Proposal {
    for _ in 0..TRIES_MAX {
        if let [Output::Announce(Intention { proposal: Some(proposal), held_max: 0, .. })] =
            &look(bench, others(slow()))[..]
        {
            return proposal.clone();
        }
    }
    panic!("nothing was proposed");
}

/// The slow one, as it says that it does what is asked.
fn joined(proposal: &Proposal) -> ServedSpan {
    let moving_to = Some(proposal.of(peer(3)).unwrap().to);
    ServedSpan { moving_to, held_max: 0, joined: Some(peer(9)), ..slow() }
}

/// The same from the other side: a slow server, on 0..4, is asked by a fast one to change places.
fn asked_view(by: u8, proposal: Proposal) -> View {
    let pinned = ServedSpan { held_max: 0, ..server(1, 5, 8, 4000.0) };
    let (moving_to, joined) = (Some(span(0, 4)), Some(peer(3)));
    let fast = ServedSpan { moving_to, joined, ..server(3, 4, 8, 900.0) };
    asking(View::new(8, [pinned, fast]), by, proposal)
}

fn asked(agreed: bool) -> Proposal {
    let fast = ProposedMove { peer: peer(3), via: Some(span(0, 8)), to: span(0, 4) };
    let slow = ProposedMove { peer: peer(9), via: None, to: span(4, 8) };
    Proposal { moves: vec![fast, slow], agreed }
}

/// The fast one serves both spans until the slow one has come.
fn fast_holds_both() -> View {
    let both = server(3, 0, 8, 900.0);
    View::new(8, [ServedSpan { moving_to: Some(span(0, 4)), ..both }])
}

#[test]
fn the_moves_begin_when_all_have_said_that_they_will() {
    let mut bench = Bench::new(9, 8);
    let proposal = proposed(&mut bench);
    assert_eq!(proposal.of(peer(3)).unwrap().to, span(0, 4));
    assert_eq!(look(&mut bench, others(slow())), [], "the other has not said so");
    let said = look(&mut bench, others(joined(&proposal)));
    let own = proposal.of(peer(9)).unwrap();
    assert_eq!(said[0], Output::Load(own.via.unwrap_or(own.to)));
    let Output::Announce(Intention { moving_to, proposal: Some(agreed), .. }) = &said[1] else {
        panic!("not agreed: {said:?}");
    };
    assert!(agreed.agreed && *moving_to == Some(span(4, 8)));
}

#[test]
fn a_plan_is_off_when_one_does_not_join_or_has_gone() {
    let mut bench = Bench::new(9, 8);
    proposed(&mut bench);
    let began = bench.now;
    while look(&mut bench, others(slow())).is_empty() {}
    assert!(bench.mover.is_resting(bench.now));
    assert!(bench.now.since(began) <= LOOK_INTERVAL * 4);

    let mut bench = Bench::new(9, 8);
    proposed(&mut bench);
    let gone = View::new(8, [server(1, 1, 4, 400.0)]);
    assert_eq!(look(&mut bench, gone), [free(8)]);
}

#[test]
fn of_two_that_propose_the_lower_id_goes_on() {
    for (by, stays) in [(2, false), (200, true)] {
        let mut bench = Bench::new(9, 8);
        let proposal = proposed(&mut bench);
        let said = look(&mut bench, asking(others(slow()), by, proposal));
        assert_eq!(said.is_empty(), stays, "{by}: {said:?}");
    }
}

#[test]
fn who_is_asked_joins_and_begins_when_all_have_agreed() {
    let mut bench = Bench::new(9, 8);
    assert_eq!(look(&mut bench, asked_view(3, asked(false))), [would_move_to(span(4, 8))]);
    assert_eq!(look(&mut bench, asked_view(3, asked(false))), []);
    let said = look(&mut bench, asked_view(3, asked(true)));
    assert_eq!(said, [Output::Load(span(4, 8)), moving_to(span(4, 8))]);
    bench.hear(Input::Loaded);
    while bench.now.elapsed() < LOOK_INTERVAL * 4 {
        let said = look(&mut bench, asked_view(3, asked(true)));
        assert_eq!(said, [], "nobody else has block 0 yet");
    }
    assert_eq!(look(&mut bench, fast_holds_both()), [Output::Serve(span(4, 8))]);
}

#[test]
fn who_has_joined_stays_when_the_plan_is_off() {
    let mut bench = Bench::new(9, 8);
    look(&mut bench, asked_view(3, asked(false)));
    let nothing = View::new(8, [server(1, 5, 8, 4000.0), server(3, 4, 8, 900.0)]);
    assert_eq!(look(&mut bench, nothing), [free(8)]);
}

#[test]
fn who_goes_on_asking_is_not_heeded_for_ever() {
    let mut bench = Bench::new(9, 8);
    let mut joined = Vec::new();
    while bench.now.elapsed() < HEED_MAX * 3 {
        if look(&mut bench, asked_view(3, asked(false))).iter().any(intends) {
            joined.push(bench.now);
        }
    }
    assert!(
        joined.len() > 1 && joined.iter().all(|at| at.elapsed() < HEED_MAX + LOOK_INTERVAL * 2)
    );
    assert!(bench.mover.is_resting(bench.now));
}

#[test]
fn what_does_not_fit_is_not_joined() {
    let wrong = [
        ProposedMove { peer: peer(9), via: None, to: span(4, 7) },
        ProposedMove { peer: peer(9), via: Some(span(2, 8)), to: span(4, 8) },
        ProposedMove { peer: peer(9), via: Some(span(0, 8)), to: span(3, 8) },
    ];
    for wrong in wrong {
        let mut bench = Bench::new(9, 8);
        let mut proposal = asked(false);
        proposal.moves[1] = wrong;
        let said = look(&mut bench, asked_view(3, proposal));
        assert!(!said.iter().any(intends), "{wrong:?}");
    }
    let mut narrow = Bench::new(9, 7);
    let mut proposal = asked(false);
    proposal.moves[1].via = Some(span(0, 8));
    assert!(!look(&mut narrow, asked_view(3, proposal)).iter().any(intends));
}

#[test]
fn who_serves_more_for_a_while_goes_on_only_when_others_have_come() {
    let mut bench = extended();
    assert_eq!(bench.hear(Input::Drained), [Output::DropOld(span(0, 4))]);
    // It serves both for as long as that takes.
    let began = bench.now;
    while bench.now.since(began) < PLAN_MAX / 2 {
        assert_eq!(look(&mut bench, others(slow())), []);
        assert!(!bench.mover.is_resting(bench.now));
    }
    let come = View::new(8, [server(1, 1, 4, 400.0), server(3, 0, 4, 10.0)]);
    assert_eq!(look(&mut bench, come.clone()), [Output::Load(span(4, 8))]);
    bench.hear(Input::Loaded);
    assert_eq!(look(&mut bench, come), [Output::Serve(span(4, 8))]);
    assert_eq!(bench.hear(Input::Drained), [Output::DropOld(span(0, 8))]);
    assert!(bench.mover.is_resting(bench.now) && bench.mover.span() == span(4, 8));
}

#[test]
fn who_serves_more_for_too_long_takes_any_part_that_it_may() {
    let mut bench = extended();
    bench.hear(Input::Drained);
    // The other stayed where it was, and block 0 has nobody else.
    let began = bench.now;
    let said = loop {
        let said = look(&mut bench, others(slow()));
        if !said.is_empty() {
            break said;
        }
    };
    assert!(bench.now.since(began) >= PLAN_MAX);
    assert_eq!(said, [Output::Load(span(0, 4)), moving_to(span(0, 4))]);
    // A load that fails is tried again, and nothing is given up meanwhile.
    assert_eq!(bench.hear(Input::LoadFailed), []);
    assert_eq!(bench.mover.span(), span(0, 8));
    assert_eq!(look(&mut bench, others(slow())), [Output::Load(span(0, 4))]);
}

#[test]
fn who_serves_more_and_is_needed_everywhere_stays_so() {
    let mut bench = extended();
    bench.hear(Input::Drained);
    let alone = View::new(8, [server(1, 1, 4, 400.0)]);
    let began = bench.now;
    while bench.now.since(began) < PLAN_MAX * 3 {
        assert_eq!(look(&mut bench, alone.clone()), []);
    }
    assert!(bench.mover.is_resting(bench.now) && bench.mover.span() == span(0, 8));
}

#[test]
fn who_has_no_room_waits_until_others_hold_what_it_leaves() {
    let mut bench = Bench::new(9, 4);
    assert_eq!(look(&mut bench, asked_view(3, asked(false))), [would_move_to(span(4, 8))]);
    assert_eq!(look(&mut bench, asked_view(3, asked(true))), [moving_to(span(4, 8))]);
    while bench.now.elapsed() < LOOK_INTERVAL * 4 {
        let said = look(&mut bench, asked_view(3, asked(true)));
        assert_eq!(said, [], "nobody else has block 0 yet");
    }
    assert_eq!(look(&mut bench, fast_holds_both()), [Output::Withdraw { to: None }]);
    let dropped = Output::DropOld(span(0, 4));
    assert_eq!(bench.hear(Input::Drained), [dropped, Output::Load(span(4, 8))]);
    assert_eq!(bench.hear(Input::Loaded), [Output::Serve(span(4, 8))]);
}

/// The fast one, on its way to 4..8, serving all blocks until the slow one has come.
fn extended() -> Bench {
    let mut bench = Bench::new(9, 8);
    let said = look(&mut bench, asking(others(slow()), 3, exchange(false)));
    assert_eq!(said, [would_move_to(span(4, 8))]);
    let agreed = asking(others(slow()), 3, exchange(true));
    let said = look(&mut bench, agreed.clone());
    assert_eq!(said, [Output::Load(span(0, 8)), moving_to(span(4, 8))]);
    bench.hear(Input::Loaded);
    let said = look(&mut bench, agreed);
    assert_eq!(said, [Output::Serve(span(0, 8)), moving_to(span(4, 8))]);
    bench
}
