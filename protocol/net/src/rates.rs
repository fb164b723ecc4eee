//! How many bytes a second all links together take of the machine's connection.
//!
//! What has no tensor in it does not wait, though it counts: the messages that hold sessions together
//! go before results, which make up nearly all bytes.

mod bucket;

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use bucket::Bucket;

/// What goes at once of a frame that waits for its turn, so that one of 8 MiB does not hold up the
/// others until its last byte.
pub(crate) const PIECE_BYTES_MAX: usize = 16 << 10;

/// The most bytes a second of all links together, by direction, with those that a relay passes on; `None`
/// for as many as come. What the connections beneath add to them, some hundredths, is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimits {
    /// To other peers.
    pub upload: Option<NonZeroU64>,
    /// From other peers.
    pub download: Option<NonZeroU64>,
}

/// Bytes of frames, and of what was passed on, so far, by direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// To other peers.
    pub sent: u64,
    /// From other peers.
    pub received: u64,
}

/// What all links of a peer share.
#[derive(Debug)]
pub(crate) struct Rates {
    pub(crate) upload: Meter,
    pub(crate) download: Meter,
}

impl Rates {
    pub(crate) fn new(limits: RateLimits) -> Self {
        Self { upload: Meter::new(limits.upload), download: Meter::new(limits.download) }
    }

    /// Whether anything ever waits.
    pub(crate) const fn has_limit(&self) -> bool {
        self.upload.cap.is_some() || self.download.cap.is_some()
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let count = |meter: &Meter| meter.count.load(Ordering::Relaxed);
        Traffic { sent: count(&self.upload), received: count(&self.download) }
    }
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Meter {
    count: AtomicU64,
    cap: Option<Cap>,
}

#[derive(Debug)]
struct Cap {
    bucket: Mutex<Bucket>,
    /// Whoever holds it is next; the others queue for it in the order in which they came.
    turn: tokio::sync::Mutex<()>,
    started: Instant,
}

impl Meter {
    fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        let cap = bytes_per_second.map(|rate| Cap {
            bucket: Mutex::new(Bucket::new(rate)),
            turn: tokio::sync::Mutex::default(),
            started: Instant::now(),
        });
        Self { count: AtomicU64::new(0), cap }
    }

    /// How many of `bytes` may go now, of which there is one at least; where there is a cap and they
    /// are of a frame that waits, after a time. They have been counted.
    pub(crate) async fn take(&self, bytes: usize, waits: bool) -> usize {
        if let Some(cap) = self.cap.as_ref().filter(|_| waits) {
            let piece = bytes.min(PIECE_BYTES_MAX);
            cap.take(piece).await;
            self.count.fetch_add(piece as u64, Ordering::Relaxed);
            return piece;
        }
        self.add(bytes);
        bytes
    }

    /// Counts what has come or gone already.
    pub(crate) fn add(&self, bytes: usize) {
        self.count.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(cap) = &self.cap {
            cap.bucket().charge(bytes, cap.now());
        }
    }

    /// Waits until what has come is paid for, where there is a cap.
    pub(crate) async fn settled(&self) {
        if let Some(cap) = &self.cap {
            cap.take(0).await;
        }
    }
}

impl Cap {
    /// Lets bytes go once those who came before have had their turn, and there is no debt.
    async fn take(&self, bytes: usize) {
        let _turn = self.turn.lock().await;
        loop {
            let wait = self.bucket().take(bytes, self.now());
            match wait {
                None => return,
                Some(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    const RATE: u64 = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn links_share_a_cap_and_what_holds_sessions_together_does_not_wait() {
        let meter = Meter::new(NonZeroU64::new(RATE));
        let started = Instant::now();
        let send = async || {
            let mut left = usize::try_from(RATE).unwrap();
            while left > 0 {
                left -= meter.take(left, true).await;
            }
        };
        let control = async {
            // The others wait by now.
            let before = Instant::now();
            assert_eq!(meter.take(300, false).await, 300);
            assert_eq!(before.elapsed(), Duration::ZERO);
        };
        tokio::join!(send(), send(), send(), control);
        let took = started.elapsed().as_secs_f64();
        assert!((2.8..3.1).contains(&took), "three seconds' worth took {took} s");
        assert_eq!(meter.count.load(Ordering::Relaxed), 3 * RATE + 300);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_cap_nothing_waits() {
        let meter = Meter::new(None);
        let started = Instant::now();
        assert_eq!(meter.take(100 << 20, true).await, 100 << 20);
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
