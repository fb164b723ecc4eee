//! Breakers open, try and close.

use proptest::prelude::*;

use super::*;

const PEER: PeerId = PeerId::from_public_key([1; 32]);

fn at(seconds: f64) -> Time {
    Time::after_start(Duration::from_secs_f64(seconds))
}

/// A breaker that opened at 100 s, for 0.8 to 1.2 s.
fn opened() -> (Health, Random) {
    let (mut health, mut random) = (Health::new(), Random::new(3));
    health.failed(PEER, at(100.0), &mut random);
    (health, random)
}

/// From when on the peer may be used again.
fn usable_from(health: &Health) -> Time {
    health.breakers[&PEER].usable_from()
}

#[test]
fn a_peer_that_failed_is_left_alone_and_then_tried_once() {
    let (mut health, _) = opened();
    assert!(!health.is_usable(PEER, at(100.79)));
    assert!(!health.begin_trial(PEER, at(100.79)));
    assert!(health.is_usable(PEER, at(101.21)));
    assert!(health.begin_trial(PEER, at(101.21)));
    assert!(!health.is_usable(PEER, at(101.3)));
    assert!(!health.begin_trial(PEER, at(101.3)));
    health.succeeded(PEER, at(101.4));
    assert!(health.is_usable(PEER, at(101.4)));
    assert!(health.begin_trial(PEER, at(101.4)) && health.begin_trial(PEER, at(101.5)));
}

#[test]
fn a_trial_without_an_outcome_gives_way_to_another() {
    let (mut health, _) = opened();
    assert!(health.begin_trial(PEER, at(102.0)));
    assert!(!health.is_usable(PEER, at(131.9)));
    assert!(health.begin_trial(PEER, at(132.0)));
}

#[test]
fn delays_double_up_to_a_minute_and_are_jittered() {
    let (mut health, mut random, mut now) = (Health::new(), Random::new(1), at(5.0));
    for wanted in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0] {
        health.failed(PEER, now, &mut random);
        let until = usable_from(&health);
        let delay = until.since(now).as_secs_f64();
        assert!((0.8 * wanted..=1.2 * wanted).contains(&delay), "{delay} of {wanted}");
        assert!(!health.is_usable(PEER, now) && health.is_usable(PEER, until));
        now = until;
        assert!(health.begin_trial(PEER, now));
    }
}

#[test]
fn sessions_that_fail_together_count_once() {
    let (mut health, mut random) = opened();
    let until = usable_from(&health);
    for _ in 0..10 {
        health.failed(PEER, at(100.1), &mut random);
        health.succeeded(PEER, at(100.2));
    }
    assert_eq!(usable_from(&health), until);
}

#[test]
fn only_a_success_that_lasts_forgets_the_failures() {
    let delay_after = |worked: f64| {
        let (mut health, mut random) = opened();
        health.succeeded(PEER, at(102.0));
        health.failed(PEER, at(102.0 + worked), &mut random);
        usable_from(&health).since(at(102.0 + worked)).as_secs_f64()
    };
    assert!((1.6..=2.4).contains(&delay_after(59.0)));
    assert!((0.8..=1.2).contains(&delay_after(60.0)));
    let (mut health, _) = opened();
    health.succeeded(PEER, at(102.0));
    health.succeeded(PEER, at(162.0));
    assert!(health.breakers.is_empty());
}

#[test]
fn a_peer_that_returned_is_tried_at_once_but_not_time_and_again() {
    let (mut health, mut random) = opened();
    health.returned(PEER, at(100.1));
    assert!(health.begin_trial(PEER, at(100.1)));
    assert!(!health.begin_trial(PEER, at(100.1)));
    health.failed(PEER, at(100.2), &mut random);
    health.returned(PEER, at(100.3));
    assert!(!health.is_usable(PEER, at(100.3)));
    health.returned(PeerId::from_public_key([2; 32]), at(100.3));
    assert_eq!(health.breakers.len(), 1);
}

#[test]
fn neither_a_farewell_nor_an_ended_lease_is_a_failure() {
    assert!(!is_failure(ErrorCode::Draining) && !is_failure(ErrorCode::LeaseEnded));
    assert!(!is_failure(ErrorCode::NextHopUnreachable));
    assert!(is_failure(ErrorCode::Internal) && is_failure(ErrorCode::Unknown(77)));
}

#[test]
fn breakers_are_bounded_and_the_worst_are_kept() {
    let (mut health, mut random) = (Health::new(), Random::new(1));
    for seconds in [0.0, 5.0] {
        health.failed(PEER, at(seconds), &mut random);
        assert!(health.begin_trial(PEER, at(seconds + 4.0)));
    }
    health.failed(PEER, at(40.0), &mut random);
    for name in 0..3_000u16 {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&name.to_le_bytes());
        health.failed(PeerId::from_public_key(key), at(40.0), &mut random);
    }
    assert_eq!(health.breakers.len(), BREAKERS_MAX);
    assert!(!health.is_usable(PEER, at(41.3)));
}

proptest! {
    #[test]
    fn no_peer_is_left_alone_for_longer_than_the_longest_delay(
        events in proptest::collection::vec((0u8..4, 0u64..90_000), 0..60),
        seed in any::<u64>(),
    ) {
        let (mut health, mut random, mut now) = (Health::new(), Random::new(seed), Time::START);
        for (event, wait) in events {
            now = now + Duration::from_millis(wait);
            match event {
                0 => health.failed(PEER, now, &mut random),
                1 => health.succeeded(PEER, now),
                2 => health.returned(PEER, now),
                _ => {
                    let usable = health.is_usable(PEER, now);
                    prop_assert_eq!(health.begin_trial(PEER, now), usable);
                }
            }
            prop_assert!(health.is_usable(PEER, now + DELAY_MAX.mul_f64(1.0 + JITTER)));
            if event == 0 {
                prop_assert!(!health.is_usable(PEER, now));
            }
        }
    }
}
