//! How many answers are given at once, and how many requests may wait for their turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Turns, in the order in which they were asked for.
#[derive(Debug)]
pub(super) struct Admission {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
}

/// A place in the queue, left when it is dropped: also by a client that goes away.
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    pub(super) fn new(at_once: usize, waiting_max: usize) -> Self {
        let turns = Arc::new(Semaphore::new(at_once));
        Self { turns, waiting: AtomicUsize::new(0), waiting_max }
    }

    /// Waits for a turn, which is over when it is dropped.
    ///
    /// # Errors
    /// Where more wait already than may.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        if let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() {
            return Ok(turn);
        }
        let _waiting = self.place()?;
        Ok(self.further_turn().await)
    }

    /// A place in the queue, for whatever else a request waits that has no answer yet.
    ///
    /// # Errors
    /// Where more wait already than may.
    pub(super) fn place(&self) -> Result<Waiting<'_>, ApiError> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        if before >= self.waiting_max {
            return Err(ApiError::busy(before));
        }
        Ok(waiting)
    }

    /// Waits for one more turn of a request that has had one.
    pub(super) async fn further_turn(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.turns).acquire_owned().await.expect("nobody closes it")
    }
}

#[cfg(test)]
mod tests {
    use super::Admission;

    #[tokio::test]
    async fn who_finds_the_queue_full_is_turned_away_and_who_leaves_makes_room() {
        let admission = Admission::new(1, 1);
        let turn = admission.turn().await.expect("nobody is there");
        let mut first = Box::pin(admission.turn());
        assert!(futures::poll!(&mut first).is_pending());
        assert!(admission.turn().await.is_err(), "one waits, and no more may");
        drop(first);
        let mut second = Box::pin(admission.turn());
        assert!(futures::poll!(&mut second).is_pending(), "its place was left");
        drop(turn);
        let turn = second.await.expect("it has waited");
        drop(turn);
        assert!(admission.turn().await.is_ok(), "a turn comes back when it is dropped");
    }
}
