//! Links: a message arrives after those before it, its own bytes, and the delay of the way.

use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::random::Random;

/// Bytes of a packet, of which each may be lost: what fits an Ethernet frame.
const PACKET_BYTES: usize = 1_200;

/// The least time after which what was lost is sent again (a probe timeout of QUIC on a near link).
const RETRANSMIT_MIN: Duration = Duration::from_millis(25);

/// What the links between two groups are like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkClass {
    /// One way.
    pub delay: Duration,
    /// Added by chance, at most.
    pub jitter: Duration,
    /// Bytes that leave in a second.
    pub bytes_per_second: f64,
    /// How likely a packet is lost; what is lost comes later, and what is behind it too.
    pub loss: f64,
    /// Bytes that wait before a link at most; beyond them, packets are lost.
    pub buffer_bytes: f64,
    /// Whether the link can be opened at all, in this direction.
    pub dialable: bool,
}

impl LinkClass {
    /// A link that loses nothing.
    #[must_use]
    pub const fn new(delay: Duration, jitter: Duration, bytes_per_second: f64) -> Self {
        let (loss, buffer_bytes, dialable) = (0.0, f64::INFINITY, true);
        Self { delay, jitter, bytes_per_second, loss, buffer_bytes, dialable }
    }

    /// The time that so many bytes take to leave.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a number of bytes fits the mantissa")]
    pub fn transfer(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second)
    }
}

/// One direction of a link that keeps the order, as a stream does.
#[derive(Debug, Clone)]
pub struct Link {
    class: LinkClass,
    free: Time,
    last_arrival: Time,
}

impl Link {
    /// A link on which nothing is under way, and which stands from a moment on.
    #[must_use]
    pub const fn new(class: LinkClass, stands: Time) -> Self {
        Self { class, free: stands, last_arrival: stands }
    }

    /// When a message of `bytes` that is sent now arrives.
    pub fn send(&mut self, bytes: usize, now: Time, random: &mut Random) -> Time {
        let class = self.class;
        let begins = self.free.max(now);
        let overflows = self.free.since(now).as_secs_f64() * class.bytes_per_second;
        self.free = begins + class.transfer(bytes);
        let mut delay = class.delay + class.jitter.mul_f64(random.unit());
        if overflows > class.buffer_bytes || (class.loss > 0.0 && self.is_lost(bytes, random)) {
            delay += (class.delay * 2).max(RETRANSMIT_MIN);
        }
        self.last_arrival = self.last_arrival.max(self.free + delay);
        self.last_arrival
    }

    /// Whether at least one packet of a message is lost.
    fn is_lost(&self, bytes: usize, random: &mut Random) -> bool {
        let packets = i32::try_from(1 + bytes / PACKET_BYTES).unwrap_or(i32::MAX);
        random.unit() > (1.0 - self.class.loss).powi(packets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_message_waits_for_the_bytes_before_it_and_never_overtakes() {
        let mut link = Link::new(LinkClass::new(ms(10), ms(5), 1_000.0), Time::START);
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

    #[test]
    fn what_is_lost_comes_a_round_trip_later() {
        let class = LinkClass { loss: 1.0, ..LinkClass::new(ms(40), ms(0), 1e9) };
        let mut link = Link::new(class, Time::START);
        let arrival = link.send(0, Time::START, &mut Random::new(3));
        assert_eq!(arrival, Time::after_start(ms(120)));
    }

    #[test]
    fn what_the_buffer_cannot_hold_comes_later_too() {
        let class = LinkClass { buffer_bytes: 500.0, ..LinkClass::new(ms(40), ms(0), 1_000.0) };
        let mut link = Link::new(class, Time::START);
        let mut random = Random::new(3);
        let first = link.send(1_000, Time::START, &mut random);
        assert_eq!(first, Time::after_start(ms(1_040)));
        let second = link.send(0, Time::START, &mut random);
        assert_eq!(second, Time::after_start(ms(1_120)));
    }
}
