//! Links: a message arrives after those before it, its own bytes, and the delay of the way.

use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::random::Random;

/// One direction of a link that loses nothing and keeps the order, as a stream does.
#[derive(Debug, Clone)]
pub struct Link {
    /// Time that the first bit is on the way.
    pub delay: Duration,
    /// Most that the delay is longer by chance.
    pub jitter: Duration,
    /// Bits that leave in a second.
    pub bytes_per_second: f64,
    free: Time,
    last_arrival: Time,
}

impl Link {
    /// A link on which nothing is under way.
    #[must_use]
    pub const fn new(delay: Duration, jitter: Duration, bytes_per_second: f64) -> Self {
        Self { delay, jitter, bytes_per_second, free: Time::START, last_arrival: Time::START }
    }

    /// When a message of `bytes` that is sent now arrives.
    #[expect(clippy::cast_precision_loss, reason = "a number of bytes fits the mantissa")]
    pub fn send(&mut self, bytes: usize, now: Time, random: &mut Random) -> Time {
        let begins = self.free.max(now);
        self.free = begins + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        let delay = self.delay + self.jitter.mul_f64(random.unit());
        self.last_arrival = self.last_arrival.max(self.free + delay);
        self.last_arrival
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_waits_for_the_bytes_before_it_and_never_overtakes() {
        let ms = Duration::from_millis;
        let mut link = Link::new(ms(10), ms(5), 1_000.0);
        let mut random = Random::new(3);
        let first = link.send(1_000, Time::START, &mut random);
        assert!(first >= Time::after_start(ms(1_010)) && first <= Time::after_start(ms(1_015)));
        let mut last = first;
        for _ in 0..100 {
            let next = link.send(1, Time::START, &mut random);
            assert!(next >= last);
            last = next;
        }
    }
}
