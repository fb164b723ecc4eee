//! When a question to the hash table has been asked long enough.
//!
//! The hash table itself waits for everybody whom it has asked. Some of those are gone, which takes five
//! seconds to find out of each where no system refuses for them, and a walk that meets several of them ends
//! by its timeout. A question is settled before that: once somebody has answered, nobody else has for a
//! while, and everybody was asked who was to be.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// How long nobody else has answered. A handshake and a question take three round trips, which is 0.9 s
/// where one takes 300 ms.
const QUIET: Duration = Duration::from_millis(1_500);

/// The same where somebody has answered with what was looked for: another answer adds little.
const QUIET_FOUND: Duration = Duration::from_secs(1);

/// Peers that are asked at once; where fewer are waited for, there is nobody else to ask.
pub(crate) const ASKED_AT_ONCE: usize = 10;

/// Questions under way, and when the last answer to each came.
#[derive(Debug)]
pub(super) struct Settling<Id>(HashMap<Id, Progress>);

#[derive(Debug, Clone, Copy)]
struct Progress {
    answers: u32,
    since: Instant,
}

/// How far a question is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    /// Peers that have answered.
    pub(super) answers: u32,
    /// Peers that were asked and have neither answered nor failed.
    pub(super) pending: u32,
    /// Whether what was looked for has been found.
    pub(super) found: bool,
}

impl<Id> Default for Settling<Id> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<Id: Hash + Eq + Copy> Settling<Id> {
    /// Takes note of all questions that are under way, and says which of them are settled.
    pub(super) fn look(
        &mut self,
        under_way: impl IntoIterator<Item = (Id, Counts)>,
        now: Instant,
    ) -> Vec<Id> {
        let before = std::mem::take(&mut self.0);
        let mut settled = Vec::new();
        for (id, Counts { answers, pending, found }) in under_way {
            // A question may have several parts, each of which counts anew.
            let known = before.get(&id).filter(|known| known.answers == answers);
            let progress = known.copied().unwrap_or(Progress { answers, since: now });
            let quiet = if found { QUIET_FOUND } else { QUIET };
            let is_quiet = now.duration_since(progress.since) >= quiet;
            if answers > 0 && is_quiet && (pending as usize) < ASKED_AT_ONCE {
                settled.push(id);
            }
            self.0.insert(id, progress);
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(answers: u32, pending: u32) -> Counts {
        Counts { answers, pending, found: false }
    }

    #[test]
    fn a_question_is_settled_once_somebody_has_answered_and_nobody_else_does() {
        let (mut settling, start) = (Settling::default(), Instant::now());
        let mut look = |answers, pending, after: u64| {
            let now = start + Duration::from_millis(after);
            !settling.look([(1, counts(answers, pending))], now).is_empty()
        };
        assert!(!look(0, 3, 0));
        assert!(!look(0, 3, 5_000), "nobody has answered");
        assert!(!look(1, 2, 5_100));
        assert!(!look(2, 1, 6_500), "somebody else has");
        assert!(!look(2, 1, 7_900));
        assert!(look(2, 1, 8_000));
    }

    #[test]
    fn who_is_still_to_be_asked_is_waited_for() {
        let (mut settling, start) = (Settling::default(), Instant::now());
        let full = counts(1, 10);
        assert!(settling.look([(1, full)], start).is_empty());
        assert!(settling.look([(1, full)], start + 2 * QUIET).is_empty());
        assert_eq!(settling.look([(1, counts(1, 9))], start + 2 * QUIET), [1]);
    }

    #[test]
    fn what_is_found_is_enough_soon() {
        let (mut settling, start) = (Settling::default(), Instant::now());
        let found = Counts { found: true, ..counts(1, 1) };
        assert!(settling.look([(1, found), (2, counts(1, 1))], start).is_empty());
        assert_eq!(settling.look([(1, found), (2, counts(1, 1))], start + QUIET_FOUND), [1]);
    }

    #[test]
    fn questions_that_are_over_are_forgotten() {
        let (mut settling, start) = (Settling::default(), Instant::now());
        settling.look([(1, counts(1, 1)), (2, counts(1, 1))], start);
        assert_eq!(settling.look([(2, counts(1, 1))], start + QUIET), [2]);
        assert!(settling.look([(1, counts(1, 1))], start + QUIET).is_empty(), "it is a new one");
    }
}
