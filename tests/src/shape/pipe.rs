//! One direction of a link: when what enters it comes out.

use std::time::Duration;

use tokio::time::Instant;
use umbel_coordinator::random::Random;

use super::Shape;

/// The least time after which TCP sends again what was lost (Linux: `TCP_RTO_MIN`).
const RETRANSMIT_MIN: Duration = Duration::from_millis(200);

/// One direction of one connection.
#[derive(Debug)]
pub(super) struct Pipe {
    /// When everything that has entered has left this end.
    free: Instant,
    /// When the last of it comes out at the other.
    last: Instant,
    random: Random,
}

impl Pipe {
    pub(super) const fn new(random: Random, now: Instant) -> Self {
        Self { free: now, last: now, random }
    }

    /// When a datagram that enters now comes out; `None` where it is lost.
    pub(super) fn datagram(
        &mut self,
        shape: &Shape,
        bytes: usize,
        now: Instant,
    ) -> Option<Instant> {
        if self.waiting(now) > transfer(shape, shape.buffer_bytes) {
            return None;
        }
        self.enter(shape, bytes, now);
        // What is lost on the way has taken its time to leave.
        let lost = self.random.unit() < shape.loss;
        (!lost).then(|| self.come_out(shape, Duration::ZERO))
    }

    /// When a piece of a stream that enters now comes out, and whether it had to be sent twice.
    pub(super) fn piece(&mut self, shape: &Shape, bytes: usize, now: Instant) -> (Instant, bool) {
        self.enter(shape, bytes, now);
        let lost = self.random.unit() < shape.loss;
        let late = if lost { (shape.delay * 2).max(RETRANSMIT_MIN) } else { Duration::ZERO };
        (self.come_out(shape, late), lost)
    }

    /// When there is room for more before the link.
    pub(super) fn room_at(&self, shape: &Shape) -> Instant {
        let room = transfer(shape, shape.buffer_bytes);
        self.free.checked_sub(room).unwrap_or(self.free)
    }

    fn waiting(&self, now: Instant) -> Duration {
        self.free.saturating_duration_since(now)
    }

    fn enter(&mut self, shape: &Shape, bytes: usize, now: Instant) {
        self.free = self.free.max(now) + transfer(shape, bytes);
    }

    fn come_out(&mut self, shape: &Shape, late: Duration) -> Instant {
        let jitter = shape.jitter.mul_f64(self.random.unit());
        self.last = self.last.max(self.free + shape.delay + jitter + late);
        self.last
    }
}

/// The time that so many bytes take to leave.
#[expect(clippy::cast_precision_loss, reason = "a number of bytes fits the mantissa")]
fn transfer(shape: &Shape, bytes: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 / shape.bytes_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn pipe(now: Instant) -> Pipe {
        Pipe::new(Random::new(7), now)
    }

    #[test]
    fn delay_and_bandwidth_add_up_and_nothing_overtakes() {
        let now = Instant::now();
        let mut pipe = pipe(now);
        let shape = Shape { jitter: ms(9), bytes_per_second: 1e6, ..Shape::of_delay(ms(20)) };
        let mut before = now;
        for number in 1..=50 {
            let out = pipe.datagram(&shape, 1_000, now).expect("it has room");
            let least = now + ms(20 + number);
            assert!(out >= least && out <= least + ms(9), "{number}: {:?}", out - now);
            assert!(out >= before);
            before = out;
        }
    }

    #[test]
    fn a_datagram_for_which_there_is_no_room_is_lost_and_a_stream_waits() {
        let now = Instant::now();
        let shape = Shape { bytes_per_second: 1e6, buffer_bytes: 2_000, ..Shape::PLAIN };
        let mut narrow = pipe(now);
        let passed = (0..10).filter(|_| narrow.datagram(&shape, 1_000, now).is_some()).count();
        assert_eq!(passed, 3, "two wait while one leaves");
        assert!(narrow.datagram(&shape, 1_000, now + ms(1)).is_some(), "there is room again");
        let mut stream = pipe(now);
        assert_eq!(stream.piece(&shape, 10_000, now), (now + ms(10), false));
        assert_eq!(stream.room_at(&shape), now + ms(8));
    }

    #[test]
    fn a_share_of_datagrams_is_lost_and_pieces_of_streams_come_later() {
        let now = Instant::now();
        let shape = Shape { loss: 0.25, ..Shape::of_delay(ms(30)) };
        let mut lossy = pipe(now);
        let passed = (0..1_000).filter(|_| lossy.datagram(&shape, 100, now).is_some()).count();
        assert!((700..800).contains(&passed), "{passed}");
        let always = Shape { loss: 1.0, ..shape };
        assert_eq!(pipe(now).piece(&always, 100, now), (now + ms(230), true));
    }
}
