//! A bucket of bytes that fills at a steady rate. Whatever the time is, it is told.

use std::num::NonZeroU64;
use std::time::Duration;

/// What it holds when it is full, as time at its rate: enough that a step of decode goes at once after
/// a short rest, and little beside what anybody feels of a connection.
const FULL: Duration = Duration::from_millis(100);

/// Bytes that may go. It can be in debt: what goes is paid for afterwards.
#[derive(Debug)]
pub(super) struct Bucket {
    bytes_per_second: f64,
    /// Below zero where it is in debt.
    level: f64,
    /// When that was so.
    at: Duration,
}

impl Bucket {
    /// A full one, at time zero.
    pub(super) fn new(bytes_per_second: NonZeroU64) -> Self {
        let bytes_per_second = bytes_per_second.get() as f64;
        Self { bytes_per_second, level: bytes_per_second * FULL.as_secs_f64(), at: Duration::ZERO }
    }

    /// Lets bytes go where there is no debt; else says how long until there is none.
    pub(super) fn take(&mut self, bytes: usize, now: Duration) -> Option<Duration> {
        self.fill(now);
        if self.level < 0.0 {
            // A nanosecond more than a rounding can take away.
            let wait = Duration::from_secs_f64(-self.level / self.bytes_per_second);
            return Some(wait + Duration::from_nanos(1));
        }
        self.level -= bytes as f64;
        None
    }

    /// Bytes that go at any rate.
    pub(super) fn charge(&mut self, bytes: usize, now: Duration) {
        self.fill(now);
        self.level -= bytes as f64;
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let full = self.bytes_per_second * FULL.as_secs_f64();
        self.level = (self.level + passed.as_secs_f64() * self.bytes_per_second).min(full);
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    /// Takes pieces as soon as they may go until `end`, and returns what went at which time.
    fn run(rate: u64, piece: usize, (begin, end): (Duration, Duration)) -> Vec<(Duration, usize)> {
        let mut bucket = Bucket::new(NonZeroU64::new(rate).unwrap());
        let (mut now, mut went) = (begin, Vec::new());
        while now < end {
            match bucket.take(piece, now) {
                None => went.push((now, piece)),
                Some(wait) => now += wait,
            }
        }
        went
    }

    #[test]
    fn no_stretch_of_time_has_more_than_its_rate_and_what_is_in_the_bucket() {
        let seconds = Duration::from_secs;
        for (rate, piece) in [(10_000, 16 << 10), (10_000, 7), (1_000_000, 16 << 10), (3, 1)] {
            let went = run(rate, piece, (seconds(3_600), seconds(3_610)));
            let sum: usize = went.iter().map(|(_, bytes)| bytes).sum();
            let sum = sum as f64;
            let slack = rate as f64 * FULL.as_secs_f64() + piece as f64;
            assert!(sum >= 10.0 * rate as f64 - 1.0, "{rate}, {piece}: only {sum}");
            for (place, &(from, _)) in went.iter().enumerate() {
                let (to, _) = went[went.len() - 1];
                let later: usize = went[place..].iter().map(|(_, bytes)| bytes).sum();
                let most = (to - from).as_secs_f64() * rate as f64 + slack;
                assert!(later as f64 <= most + 1.0, "{rate}, {piece}: {later} and not {most}");
            }
        }
    }

    #[test]
    fn what_goes_at_any_rate_is_paid_for_by_the_others() {
        let mut bucket = Bucket::new(NonZeroU64::new(1_000).unwrap());
        let now = Duration::from_secs(5);
        assert_eq!(bucket.take(100, now), None);
        bucket.charge(2_000, now);
        let wait = bucket.take(1, now).unwrap();
        assert!((wait.as_secs_f64() - 2.0).abs() < 1e-6, "{wait:?}");
        assert_eq!(bucket.take(1, now + wait), None);
        // A clock that goes back changes nothing.
        assert!(bucket.take(1, now).is_some());
    }
}
