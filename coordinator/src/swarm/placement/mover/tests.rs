//! The order in which a server moves, with views made by hand.

mod agree;

use super::super::ServedSpan;
use super::*;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

fn peer(name: u8) -> PeerId {
    PeerId::from_public_key([name; 32])
}

fn server(name: u8, start: u32, end: u32, rate: f64) -> ServedSpan {
    let held_max = 2 * (end - start);
    let (peer, span) = (peer(name), Some(span(start, end)));
    ServedSpan { peer, span, moving_to: None, rate, held_max, joined: None }
}

fn sight(view: View) -> Sight {
    Sight { view, rate: 50.0, missing_bytes: Vec::new(), bytes_per_second: 0.0 }
}

/// A mover, its clock, and what it said.
struct Bench {
    mover: Mover,
    now: Time,
}

impl Bench {
    /// Serves blocks 0..4 of 8 at rate 50.
    fn new(name: u8, held_max: u32) -> Self {
        let config = MoverConfig {
            peer: peer(name),
            span: span(0, 4),
            block_limit: 4,
            held_max,
            look_interval: LOOK_INTERVAL,
            seed: 1,
        };
        let mut bench = Self { mover: Mover::new(config, Time::START), now: Time::START };
        assert_eq!(bench.said(), [free(held_max)]);
        bench
    }

    /// Lets its timer run out; what it says.
    fn wait(&mut self) -> Vec<Output> {
        self.now = self.mover.poll_timeout().expect("a timer is armed");
        self.mover.handle_timeout(self.now);
        self.said()
    }

    fn hear(&mut self, input: Input) -> Vec<Output> {
        self.mover.handle(input, self.now);
        self.said()
    }

    fn see(&mut self, servers: &[ServedSpan]) -> Vec<Output> {
        self.see_view(View::new(8, servers.iter().copied()))
    }

    fn see_view(&mut self, view: View) -> Vec<Output> {
        self.hear(Input::Seen(sight(view)))
    }

    fn said(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.mover.poll()).collect()
    }

    /// Looks at a swarm in which blocks 4..8 are weak, and announces that it goes there.
    fn intend(&mut self, servers: &[ServedSpan]) -> Span {
        assert_eq!(self.wait(), [Output::Look]);
        let said = self.see(servers);
        let [Output::Announce(Intention { moving_to: Some(to), .. })] = said[..] else {
            panic!("no intention: {said:?}");
        };
        to
    }
}

/// That it stays, and may be asked to move.
fn free(held_max: u32) -> Output {
    Output::Announce(Intention { held_max, ..Intention::default() })
}

/// That it stays, and may not.
fn busy() -> Output {
    Output::Announce(Intention::default())
}

fn intends(output: &Output) -> bool {
    matches!(output, Output::Announce(Intention { moving_to: Some(_), .. }))
}

fn weak_end() -> [ServedSpan; 2] {
    [server(1, 0, 4, 100.0), server(2, 4, 8, 10.0)]
}

#[test]
fn a_server_makes_the_new_before_it_breaks_the_old() {
    let mut bench = Bench::new(9, 8);
    let to = bench.intend(&weak_end());
    assert!(!bench.mover.is_resting(bench.now));
    assert_eq!(bench.wait(), [Output::Look]);
    assert_eq!(bench.see(&weak_end()), [Output::Load(to)]);
    assert_eq!(bench.hear(Input::Loaded), []);
    assert_eq!(bench.wait(), [Output::Look]);
    assert_eq!(bench.see(&weak_end()), [Output::Serve(to)]);
    assert_eq!(bench.hear(Input::Drained), [Output::DropOld(span(0, 4))]);
    assert!(bench.mover.is_resting(bench.now) && bench.mover.span() == to);
}

#[test]
fn old_sessions_do_not_hold_a_server_for_ever() {
    let mut bench = Bench::new(9, 8);
    let to = bench.intend(&weak_end());
    bench.wait();
    bench.see(&weak_end());
    bench.hear(Input::Loaded);
    bench.wait();
    assert_eq!(bench.see(&weak_end()), [Output::Serve(to)]);
    assert_eq!(bench.wait(), [Output::DropOld(span(0, 4)), free(8)]);
}

#[test]
fn a_server_without_room_for_both_withdraws_to_what_they_share_first() {
    let mut bench = Bench::new(9, 4);
    let to = bench.intend(&weak_end());
    bench.wait();
    assert_eq!(bench.see(&weak_end()), [Output::Withdraw { to: span(0, 4).intersection(to) }]);
    let dropped = Output::DropOld(span(0, 4));
    assert_eq!(bench.hear(Input::Drained), [dropped, Output::Load(to)]);
    assert_eq!(bench.hear(Input::Loaded), [Output::Serve(to)]);
}

#[test]
fn a_server_that_serves_nothing_any_more_goes_back_when_the_load_fails() {
    let mut bench = Bench::new(9, 4);
    bench.intend(&weak_end());
    bench.wait();
    bench.see(&weak_end());
    bench.hear(Input::Drained);
    let back = Intention { moving_to: Some(span(0, 4)), ..Intention::default() };
    assert_eq!(bench.hear(Input::LoadFailed), [Output::Announce(back)]);
    assert_eq!(bench.wait(), [Output::Load(span(0, 4))]);
    assert_eq!(bench.hear(Input::Loaded), [Output::Serve(span(0, 4))]);
}

#[test]
fn a_server_whose_loads_fail_leaves_the_blocks_to_others_until_it_tries_once_more() {
    let mut bench = Bench::new(9, 4);
    bench.intend(&weak_end());
    bench.wait();
    bench.see(&weak_end());
    bench.hear(Input::Drained);
    let back = Intention { moving_to: Some(span(0, 4)), ..Intention::default() };
    bench.hear(Input::LoadFailed);
    bench.wait();
    assert_eq!(bench.hear(Input::LoadFailed), [Output::Announce(Intention::default())]);
    assert_eq!(bench.wait(), [Output::Load(span(0, 4)), Output::Announce(back)]);
    assert_eq!(bench.hear(Input::Loaded), [Output::Serve(span(0, 4))]);
}

#[test]
fn of_two_that_intend_the_same_exactly_one_goes_on() {
    let (mut first, mut second) = (Bench::new(3, 8), Bench::new(4, 8));
    let others = [server(1, 0, 4, 100.0), server(2, 4, 8, 100.0)];
    let see = |name: u8, moving_to: Option<Span>| {
        let other = ServedSpan { moving_to, ..server(name, 0, 4, 50.0) };
        [others[0], others[1], other]
    };
    let (a, b) = (first.intend(&see(4, None)), second.intend(&see(3, None)));
    first.wait();
    second.wait();
    let went = first.see(&see(4, Some(b)));
    let stayed = second.see(&see(3, Some(a)));
    assert_eq!(went, [Output::Load(a)]);
    assert_eq!(stayed, [free(8)]);
}

/// A server without room for both, on blocks that one other has, and that one.
fn two_on_the_first_half(moving_to: Option<Span>) -> [ServedSpan; 2] {
    [server(2, 4, 8, 10.0), ServedSpan { moving_to, ..server(4, 0, 4, 60.0) }]
}

#[test]
fn blocks_are_not_left_while_the_other_who_has_them_says_that_it_goes_too() {
    let mut bench = Bench::new(3, 4);
    let to = bench.intend(&two_on_the_first_half(None));
    bench.wait();
    // That one's move brings less, but it may not know.
    assert_eq!(bench.see(&two_on_the_first_half(Some(to))), []);
    assert_eq!(bench.wait(), [Output::Look]);
    assert_eq!(bench.see(&two_on_the_first_half(Some(to))), []);
    assert_eq!(bench.wait(), [Output::Look]);
    let withdraw = Output::Withdraw { to: span(0, 4).intersection(to) };
    assert_eq!(bench.see(&two_on_the_first_half(None)), [withdraw], "it has given way");
}

#[test]
fn who_waits_for_a_rival_that_does_not_give_way_stays_in_the_end() {
    let mut bench = Bench::new(3, 4);
    let to = bench.intend(&two_on_the_first_half(None));
    let began = bench.now;
    let said = loop {
        assert_eq!(bench.wait(), [Output::Look]);
        let said = bench.see(&two_on_the_first_half(Some(to)));
        if !said.is_empty() {
            break said;
        }
    };
    assert_eq!(said, [free(4)]);
    assert!(bench.now.since(began) < READY_MAX + LOOK_INTERVAL);
}

#[test]
fn a_server_that_has_left_its_blocks_already_is_not_expected_to_give_way() {
    let mut bench = Bench::new(3, 8);
    let others = [server(1, 0, 4, 100.0), server(2, 4, 8, 100.0)];
    let rival = server(4, 0, 4, 50.0);
    let to = bench.intend(&[others[0], others[1], rival]);
    bench.wait();
    // It said so and left before this server heard of the first.
    let gone = ServedSpan { span: None, moving_to: Some(to), ..rival };
    assert_eq!(bench.see(&[others[0], others[1], gone]), [free(8)]);
}

#[test]
fn the_more_servers_there_are_the_longer_an_intention_is_announced() {
    let seconds = |servers| until_all_know(servers).as_secs();
    assert_eq!([1, 16, 17, 32, 33, 100, 300, 1_000].map(seconds), [20, 20, 30, 30, 40, 50, 70, 80]);
    let mut bench = Bench::new(9, 8);
    let far = (100..200).map(|name| server(name, 4, 8, 0.01));
    let many: Vec<_> = weak_end().into_iter().chain(far).collect();
    bench.intend(&many);
    let waits = bench.mover.poll_timeout().unwrap().since(bench.now);
    assert!(waits >= until_all_know(103), "{waits:?}");
}

#[test]
fn rates_that_follow_live_traffic_do_not_make_another_view() {
    let mut bench = Bench::new(9, 8);
    let mut look = |rate: f64| {
        assert_eq!(bench.wait(), [Output::Look]);
        // Nobody can do better.
        bench.see(&[server(1, 4, 8, rate)]);
        bench.mover.settled.as_ref().map(|(_, tries)| *tries)
    };
    assert_eq!([50.0, 50.7, 49.1, 52.0].map(&mut look), [1, 2, 3, 4].map(Some));
    assert_eq!(look(20.0), Some(1), "that is another");
}

#[test]
fn a_loaded_span_waits_while_the_old_one_is_needed_and_is_given_up_in_the_end() {
    let mut bench = Bench::new(9, 8);
    let to = bench.intend(&weak_end());
    bench.wait();
    bench.see(&weak_end());
    bench.hear(Input::Loaded);
    // The other server of blocks 0..4 has gone.
    let alone = [server(2, 4, 8, 10.0)];
    let said = loop {
        assert_eq!(bench.wait(), [Output::Look]);
        let said = bench.see(&alone);
        if !said.is_empty() {
            break said;
        }
    };
    assert_eq!(said, [Output::DropOld(to), free(8)]);
    assert!(bench.now.elapsed() < LOOK_INTERVAL + SETTLE + READY_MAX * 3);
}

#[test]
fn failed_loads_are_tried_less_and_less_often() {
    let mut bench = Bench::new(9, 8);
    let mut waits = Vec::new();
    for _ in 0..6 {
        bench.intend(&weak_end());
        bench.wait();
        bench.see(&weak_end());
        assert_eq!(bench.hear(Input::LoadFailed), [busy()]);
        waits.push(bench.mover.poll_timeout().unwrap().since(bench.now));
    }
    assert!(waits[5] > waits[0] * 4, "{waits:?}");
}

#[test]
fn a_server_that_moved_stays_for_a_while() {
    let mut bench = Bench::new(9, 8);
    bench.intend(&weak_end());
    bench.wait();
    bench.see(&weak_end());
    bench.hear(Input::Loaded);
    bench.wait();
    bench.see(&weak_end());
    bench.hear(Input::Drained);
    let moved = bench.now;
    // Now the start is weak.
    let weak_start = [server(1, 0, 4, 10.0), server(2, 4, 8, 100.0)];
    loop {
        assert_eq!(bench.wait()[0], Output::Look);
        let said = bench.see(&weak_start);
        if said.iter().any(intends) {
            break;
        }
    }
    assert!(bench.now.since(moved) >= MOVE_INTERVAL_MIN);
}

#[test]
fn what_comes_unasked_is_ignored() {
    let mut bench = Bench::new(9, 8);
    assert_eq!(bench.see(&weak_end()), []);
    assert_eq!(bench.hear(Input::Loaded), []);
    assert_eq!(bench.hear(Input::Drained), []);
    assert_eq!(bench.hear(Input::LoadFailed), []);
    assert!(bench.mover.is_resting(bench.now));
}
