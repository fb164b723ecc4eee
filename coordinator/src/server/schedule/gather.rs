//! Waiting for sessions that are about to come, so that one pass serves them all.
//!
//! A pass reads every weight once, however many sessions share it. Sessions that come back while one
//! runs go into the next together, those of that one come back meanwhile, and so two groups could
//! take turns for ever and read the weights twice for every token. So a pass that would only decode
//! waits a moment for those that are due, as long as the moment is short beside what a pass costs by
//! itself. Whose next step takes longer, as that of a group that another server works on, is not
//! waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use umbel_protocol::SessionId;

use crate::time::Time;

/// A pass waits for those who usually come within this part of what it costs without any token: what it
/// saves is all of it.
const COST_PARTS: u32 = 2;

/// The longest wait in any case: nobody notices it.
const WAIT_MAX: Duration = Duration::from_millis(50);

/// A session is late when it takes longer than usual by this part of it, or by what [`COST_PARTS`] allows,
/// whichever is less. For it a pass may wait beyond that, since it holds nobody up who comes in time; who
/// does not come costs a pass at most as long as it takes, or [`SLACK_MIN`] more than half of that.
const SLACK_PARTS: u32 = 4;

/// But not before it takes so much longer: clocks and timers are no finer.
const SLACK_MIN: Duration = Duration::from_millis(1);

/// By this part what a session usually takes becomes less with every step that comes while a pass runs:
/// within some tens of them it is waited for once, in vain if it is as slow as it was.
const TRIED_AGAIN_PARTS: u32 = 64;

/// When sessions that decode left, and how soon each usually comes back.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    away: BTreeMap<SessionId, Away>,
    /// Until when the next pass waits at most, once it could begin.
    deadline: Option<Time>,
    /// When the pass began that runs.
    running: Option<Time>,
    /// How long all before it have run.
    computed: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Away {
    /// When the last result was handed on, and how long passes had run by then; `None` while a step waits
    /// or is computed.
    left: Option<(Time, Duration)>,
    /// From there to the next step, smoothed, if it is waited for.
    usual: Option<Duration>,
}

impl Gathering {
    /// A step of a session was computed, and its result is on its way.
    pub(super) fn left(&mut self, session: SessionId, now: Time) {
        let left = Some((now, self.computed(now)));
        self.away.entry(session).or_insert(Away { left: None, usual: None }).left = left;
    }

    /// A session's next step is here.
    pub(super) fn came(&mut self, session: SessionId, now: Time) {
        let computed = self.computed(now);
        let Some(away) = self.away.get_mut(&session) else {
            return;
        };
        let Some((left, before)) = away.left.take() else {
            return;
        };
        let took = now.since(left);
        let meanwhile = computed.saturating_sub(before);
        away.usual = Some(if meanwhile.is_zero() {
            let usual = away.usual.unwrap_or(took);
            // Who was late once is not soon waited for again.
            took.max(usual * 3 / 4 + took / 4)
        } else {
            let least = took.saturating_sub(meanwhile);
            match away.usual {
                None => least,
                // It was waited for in vain.
                Some(usual) if usual < least => (least + took) / 2,
                // It is tried again now and then, or nobody would know that it has become less.
                Some(usual) => (usual - usual / TRIED_AGAIN_PARTS).clamp(least, took),
            }
        });
    }

    /// How long passes have run.
    fn computed(&self, now: Time) -> Duration {
        self.computed + self.running.map_or(Duration::ZERO, |began| now.since(began))
    }

    /// A session has ended.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.away.remove(&session);
    }

    /// Until when a pass that could begin now, and costs `cost` without any token, waits for those
    /// that are due; `None` if it begins.
    pub(super) fn wait(&mut self, cost: Duration, now: Time) -> Option<Time> {
        let wait_max = (cost / COST_PARTS).min(WAIT_MAX);
        let deadline = *self.deadline.get_or_insert(now + wait_max);
        let due = self.away.values().filter_map(|away| {
            let ((left, _), usual) = away.left.zip(away.usual)?;
            let late = left + usual + (usual / SLACK_PARTS).min(wait_max).max(SLACK_MIN);
            (left + usual <= deadline).then_some(late)
        });
        due.filter(|late| now < *late).max()
    }

    /// A pass has begun.
    pub(super) const fn begun(&mut self, now: Time) {
        self.deadline = None;
        self.running = Some(now);
    }

    /// The pass has ended.
    pub(super) fn ended(&mut self, now: Time) {
        self.computed = self.computed(now);
        self.running = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Duration = Duration::from_millis(40);

    fn at(millis: u64) -> Time {
        Time::START + Duration::from_millis(millis)
    }

    fn session(number: u128) -> SessionId {
        SessionId::new(number)
    }

    /// Sessions that left at 100 ms and usually come back after so many.
    fn gathering(usual: &[u64]) -> Gathering {
        let mut gathering = Gathering::default();
        for (number, usual) in (1..).zip(usual) {
            gathering.left(session(number), at(100 - usual));
            gathering.came(session(number), at(100));
            gathering.left(session(number), at(100));
        }
        gathering
    }

    #[test]
    fn a_pass_waits_for_who_is_due_and_begins_when_all_are_here() {
        let mut gathering = gathering(&[4, 8]);
        assert_eq!(gathering.wait(COST, at(103)), Some(at(110)));
        gathering.came(session(2), at(107));
        gathering.came(session(1), at(104));
        assert_eq!(gathering.wait(COST, at(107)), None);
    }

    #[test]
    fn who_is_late_is_not_waited_for() {
        let mut gathering = gathering(&[8]);
        assert_eq!(gathering.wait(COST, at(109)), Some(at(110)));
        assert_eq!(gathering.wait(COST, at(110)), None);
        // Nor is the wait prolonged for others that left meanwhile.
        gathering.left(session(1), at(115));
        assert_eq!(gathering.wait(COST, at(116)), Some(at(124) + SLACK_MIN));
        gathering.left(session(1), at(122));
        assert_eq!(gathering.wait(COST, at(123)), None);
    }

    #[test]
    fn a_wait_is_short_beside_the_pass_that_it_saves() {
        let mut far = gathering(&[30]);
        assert_eq!(far.wait(COST, at(101)), None);
        let mut near = gathering(&[30]);
        assert_eq!(near.wait(3 * COST, at(101)), Some(at(137) + Duration::from_micros(500)));
        assert_eq!(gathering(&[60]).wait(100 * COST, at(101)), None, "no wait is as long");
        assert_eq!(gathering(&[4]).wait(Duration::ZERO, at(101)), None, "it saves nothing");
    }

    #[test]
    fn who_is_slow_and_does_not_come_costs_a_pass_no_more_than_it_takes() {
        let mut slow = gathering(&[90]);
        let short = Duration::from_millis(14);
        assert_eq!(slow.wait(short, at(184)), Some(at(190) + short / 2));
    }

    #[test]
    fn short_passes_are_waited_for_though_timers_are_coarse() {
        let mut gathering = Gathering::default();
        let soon = Duration::from_micros(300);
        gathering.left(session(1), at(99));
        gathering.came(session(1), at(99) + soon);
        gathering.left(session(1), at(100));
        let cost = Duration::from_millis(2);
        assert_eq!(gathering.wait(cost, at(100)), Some(at(100) + soon + SLACK_MIN));
        gathering.begun(at(100));
        gathering.ended(at(100));
        assert_eq!(gathering.wait(soon, at(100)), None, "the wait is as long as what it saves");
    }

    #[test]
    fn who_shares_the_cores_with_passes_is_waited_for() {
        let mut gathering = Gathering::default();
        // Two take turns: each comes back when the other's pass is nearly over.
        for turn in 0..3 {
            gathering.left(session(1), at(100 + 40 * turn));
            gathering.begun(at(100 + 40 * turn));
            gathering.came(session(1), at(138 + 40 * turn));
            gathering.ended(at(140 + 40 * turn));
        }
        gathering.left(session(2), at(220));
        assert_eq!(gathering.wait(COST, at(220)), None, "nothing is known of it yet");
        gathering.left(session(1), at(220));
        assert_eq!(gathering.wait(COST, at(220)), Some(at(221)));
        gathering.came(session(1), at(221));
        gathering.begun(at(221));
        gathering.ended(at(300));
        gathering.left(session(1), at(300));
        assert_eq!(gathering.wait(COST, at(300)), Some(at(302)), "it takes a millisecond");
    }

    #[test]
    fn who_is_far_away_is_waited_for_a_few_times_and_then_hardly_ever() {
        let (mut gathering, far) = (Gathering::default(), 30);
        let (mut now, mut waited) = (100, Vec::new());
        for _ in 0..60 {
            gathering.left(session(1), at(now));
            let began = gathering.wait(COST, at(now)).unwrap_or(at(now));
            waited.push(began.since(at(now)));
            gathering.begun(began);
            gathering.came(session(1), at(now + far));
            now += 70;
            gathering.ended(at(now));
        }
        let waits = waited.iter().filter(|wait| !wait.is_zero()).count();
        let sum: Duration = waited.iter().sum();
        assert!((2..=8).contains(&waits) && sum < Duration::from_millis(100), "{waited:?}");
    }

    #[test]
    fn who_was_late_once_is_not_soon_waited_for_again() {
        let mut gathering = gathering(&[8]);
        gathering.came(session(1), at(160));
        gathering.left(session(1), at(200));
        assert_eq!(gathering.wait(COST, at(201)), None);
    }

    #[test]
    fn who_has_ended_or_never_came_back_is_not_waited_for() {
        let mut gathering = gathering(&[8]);
        gathering.forget(session(1));
        gathering.left(session(2), at(100));
        assert_eq!(gathering.wait(COST, at(101)), None);
    }
}
