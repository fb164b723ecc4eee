//! The head, which all sessions of a process share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use umbel_engine::{Ends, EndsError, HiddenStates};

/// Tokens that are computed together: beyond some dozens, arithmetic and not the reading of the
/// weights is what takes time, and 64 rows of the largest vocabularies are 40 MB.
const ROWS_MAX: usize = 64;

/// The logits of one request, a row for each token.
type Logits = Result<Vec<Vec<f32>>, EndsError>;

/// Computes the logits of many sessions at once: those that come while others are computed are next,
/// all together, and read the weights once. No bit depends on what is computed together.
#[derive(Debug)]
pub(super) struct Head {
    ends: Ends,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Request>,
    /// Whether a thread computes, which looks here once more before it ends.
    is_busy: bool,
}

#[derive(Debug)]
struct Request {
    hidden: HiddenStates,
    answer: oneshot::Sender<Logits>,
}

impl Head {
    pub(super) fn new(ends: Ends) -> Self {
        Self { ends, queue: Mutex::default() }
    }

    pub(super) const fn ends(&self) -> &Ends {
        &self.ends
    }

    /// A logit for each token of the vocabulary, for each token of `hidden`, computed where it does
    /// not hold up the network.
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model.
    pub(super) async fn logits(self: &Arc<Self>, hidden: HiddenStates) -> Logits {
        let (answer, logits) = oneshot::channel();
        let is_first = {
            let mut queue = self.queue();
            queue.waiting.push(Request { hidden, answer });
            !std::mem::replace(&mut queue.is_busy, true)
        };
        if is_first {
            let head = Arc::clone(self);
            tokio::task::spawn_blocking(move || head.work());
        }
        logits.await.expect("every request is answered by the thread that is busy")
    }

    /// Answers until nobody waits.
    fn work(&self) {
        let _whatever_happens = Leave(self);
        while let Some(batch) = self.next_batch() {
            let (hidden, answers): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|request| (request.hidden, request.answer)).unzip();
            for (answer, logits) in answers.into_iter().zip(self.ends.logits_of_each(&hidden)) {
                // Who asked may be gone.
                let _gone = answer.send(logits);
            }
        }
    }

    /// Those who have waited longest.
    fn next_batch(&self) -> Option<Vec<Request>> {
        let mut queue = self.queue();
        let mut rows = 0;
        let fits = queue.waiting.iter().take_while(|request| {
            rows += request.hidden.token_count();
            rows <= ROWS_MAX
        });
        // One that is too long by itself is computed alone.
        let count = fits.count().max(1).min(queue.waiting.len());
        queue.is_busy = count > 0;
        (count > 0).then(|| queue.waiting.drain(..count).collect())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets nobody wait for a thread that has panicked.
struct Leave<'a>(&'a Head);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.queue() = Queue::default();
        }
    }
}

#[cfg(test)]
mod tests;
