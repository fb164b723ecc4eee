//! Whether this clock agrees with those of the others.
//!
//! Servers date what they announce, every ten seconds, and refuse what is dated too far ahead or has
//! expired; so a clock that is wrong keeps its machine out of the swarm.

use std::time::Duration;

use umbel_protocol::announcement::{AnnouncementError, UnixTime};

use super::Finding;

/// By how much clocks that NTP sets may differ, with the time of a message.
const AHEAD_GOOD: Duration = Duration::from_secs(2);

/// How old the newest announcement of a swarm may be: three times the interval of ten seconds.
const AGE_GOOD: Duration = Duration::from_secs(30);

/// What to do about a wrong clock.
const ADVICE: &str = "set the clock by NTP, as `timedatectl set-ntp true` does";

/// Judges by when announcements were made, as their signers say, and by those that were refused.
pub(super) fn judge(
    now: UnixTime,
    issued: &[UnixTime],
    refused: &[AnnouncementError],
) -> Option<Finding> {
    let subject = "clock";
    let ahead: Vec<_> = issued.iter().filter(|at| at.since(now) > AHEAD_GOOD).collect();
    let of_dates = |error: &&AnnouncementError| {
        matches!(error, AnnouncementError::FromTheFuture { .. } | AnnouncementError::Expired { .. })
    };
    if let (Some(error), true) = (refused.iter().find(of_dates), issued.is_empty()) {
        return Some(Finding::bad(subject, format!("it differs from all others: {error}"), ADVICE));
    }
    let newest = issued.iter().max()?;
    if ahead.len() * 2 > issued.len() {
        let by = newest.since(now).as_secs_f64();
        return Some(Finding::bad(
            subject,
            format!("it is {by:.0} s or more behind most others"),
            ADVICE,
        ));
    }
    if now.since(*newest) > AGE_GOOD {
        let by = now.since(*newest).as_secs();
        let what =
            format!("it is ahead of all others, or nobody has announced anything for {by} s");
        return Some(Finding::note(subject, what, ADVICE));
    }
    let others = ahead.len() + refused.iter().filter(of_dates).count();
    if others > 0 {
        let what = format!("it agrees with most others; {others} have another time");
        return Some(Finding::note(subject, what, "the clocks of those others are wrong"));
    }
    Some(Finding::good(subject, "it agrees with those of the others"))
}

#[cfg(test)]
mod tests {
    use umbel_protocol::PeerId;

    use super::super::Grade;
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::after_epoch(Duration::from_secs(seconds))
    }

    fn grade(issued: &[u64], refused: &[AnnouncementError]) -> Option<Grade> {
        let issued: Vec<_> = issued.iter().map(|seconds| at(*seconds)).collect();
        judge(at(1_000), &issued, refused).map(|finding| finding.grade)
    }

    fn from_the_future() -> AnnouncementError {
        let peer = PeerId::from_public_key([1; 32]);
        AnnouncementError::FromTheFuture { peer, ahead: Duration::from_secs(500) }
    }

    #[test]
    fn a_clock_is_judged_by_most_of_the_others() {
        assert_eq!(grade(&[995, 980, 1_001], &[]), Some(Grade::Good));
        assert_eq!(grade(&[1_060, 1_055, 990], &[]), Some(Grade::Bad), "this one is behind");
        assert_eq!(grade(&[1_060, 999, 990], &[]), Some(Grade::Note), "another one is ahead");
        assert_eq!(grade(&[960, 950], &[]), Some(Grade::Note), "this one may be ahead");
        assert_eq!(grade(&[], &[]), None, "nothing was heard");
    }

    #[test]
    fn a_clock_that_refuses_everybody_is_at_fault_itself() {
        assert_eq!(grade(&[], &[from_the_future()]), Some(Grade::Bad));
        assert_eq!(grade(&[999], &[from_the_future()]), Some(Grade::Note));
    }
}
