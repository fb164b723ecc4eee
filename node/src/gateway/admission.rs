//! How many answers are given at once, how many texts are read for them, and how many requests may wait
//! for either.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use super::{Limits, Turn};

/// Turns, in the order in which they were asked for.
#[derive(Debug)]
pub(super) struct Admission {
    turns: Arc<Semaphore>,
    /// Places to make tokens of texts, which comes before a turn.
    encoding: Arc<Semaphore>,
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
    pub(super) fn new(limits: &Limits) -> Self {
        let [turns, encoding] =
            [limits.answers, limits.encoding].map(|places| Arc::new(Semaphore::new(places)));
        Self { turns, encoding, waiting: AtomicUsize::new(0), waiting_max: limits.waiting }
    }

    /// Waits for a turn, which is over when it is dropped.
    ///
    /// # Errors
    /// Where more wait already than may.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.permit(&self.turns).await
    }

    /// Waits until a text of a request may become tokens, for as long as what comes is held.
    ///
    /// # Errors
    /// Of the first one of a request, where more wait already than may.
    pub(super) async fn encoding(&self, turn: Turn) -> Result<OwnedSemaphorePermit, ApiError> {
        match turn {
            Turn::First => self.permit(&self.encoding).await,
            Turn::Further => Ok(acquire(&self.encoding).await),
        }
    }

    async fn permit(&self, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
        if let Ok(permit) = Arc::clone(places).try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = self.place()?;
        Ok(acquire(places).await)
    }

    /// A place in the queue, for whatever else a request waits that has no answer yet.
    ///
    /// # Errors
    /// Where more wait already than may.
    pub(super) fn place(&self) -> Result<Waiting<'_>, ApiError> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        if before >= self.waiting_max {
            return Err(ApiError::busy(before, "requests"));
        }
        Ok(waiting)
    }

    /// Waits for one more turn of a request that has had one.
    pub(super) async fn further_turn(&self) -> OwnedSemaphorePermit {
        acquire(&self.turns).await
    }
}

async fn acquire(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(places).acquire_owned().await.expect("nobody closes it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn texts_are_read_one_after_the_other_and_who_waits_for_that_counts_as_waiting() {
        let admission = Admission::new(&Limits { answers: 8, waiting: 1, encoding: 1 });
        let reading = admission.encoding(Turn::First).await.expect("nobody is there");
        let mut first = Box::pin(admission.encoding(Turn::First));
        assert!(futures::poll!(&mut first).is_pending(), "there is one place");
        assert!(admission.encoding(Turn::First).await.is_err(), "one waits, and no more may");
        let mut further = Box::pin(admission.encoding(Turn::Further));
        assert!(futures::poll!(&mut further).is_pending(), "it was let in, and waits");
        assert!(admission.turn().await.is_ok(), "turns are others");
        drop(reading);
        drop(first.await.expect("it has waited"));
        assert!(further.await.is_ok());
    }

    #[tokio::test]
    async fn who_finds_the_queue_full_is_turned_away_and_who_leaves_makes_room() {
        let admission = Admission::new(&Limits { answers: 1, waiting: 1, encoding: 1 });
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
