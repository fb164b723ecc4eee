//! The head, which all sessions of a process share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use umbel_engine::{Ends, EndsError, HiddenStates};

/// Tokens that are computed together: beyond some dozens, arithmetic and not the reading of the
/// weights is what takes time, and 64 rows of the largest vocabularies are 40 MB.
const ROWS_MAX: usize = 64;

/// How long the logits of one token may take to be computed by the task that wants them: two wakes of a
/// thread, which are saved, take 0.1 ms, and what else waits for the task's thread waits no longer.
const HERE_MAX: Duration = Duration::from_millis(2);

/// The logits of one request, a row for each token.
type Logits = Result<Vec<Vec<f32>>, EndsError>;

/// Computes the logits of many sessions at once: those that come while others are computed are next,
/// all together, and read the weights once. No bit depends on what is computed together.
#[derive(Debug)]
pub(super) struct Head {
    ends: Ends,
    queue: Mutex<Queue>,
    /// Microseconds that the logits of one token took last.
    one_row: AtomicU64,
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
        Self { ends, queue: Mutex::default(), one_row: AtomicU64::new(u64::MAX) }
    }

    pub(super) const fn ends(&self) -> &Ends {
        &self.ends
    }

    /// A logit for each token of the vocabulary, for each token of `hidden`, computed where it does
    /// not hold up the network, or here where that is short.
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model.
    pub(super) async fn logits(self: &Arc<Self>, hidden: HiddenStates) -> Logits {
        let is_one = hidden.token_count() == 1;
        let (answer, logits) = oneshot::channel();
        let is_first = {
            let mut queue = self.queue();
            queue.waiting.push(Request { hidden, answer });
            !std::mem::replace(&mut queue.is_busy, true)
        };
        let one_row = Duration::from_micros(self.one_row.load(Ordering::Relaxed));
        // Those that come meanwhile are left to a thread.
        if is_first && !(is_one && one_row <= HERE_MAX && self.work(1)) {
            let head = Arc::clone(self);
            tokio::task::spawn_blocking(move || head.work(usize::MAX));
        }
        logits.await.expect("every request is answered by the thread that is busy")
    }

    /// Answers so many batches, or until nobody waits; whether nobody does.
    fn work(&self, batches: usize) -> bool {
        let _whatever_happens = Leave(self);
        for _ in 0..batches {
            let Some(batch) = self.next_batch() else {
                return true;
            };
            let (hidden, answers): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|request| (request.hidden, request.answer)).unzip();
            let started = Instant::now();
            let logits = self.ends.logits_of_each(&hidden);
            if let [alone] = hidden.as_slice()
                && alone.token_count() == 1
            {
                let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.one_row.store(took, Ordering::Relaxed);
            }
            for (answer, logits) in answers.into_iter().zip(logits) {
                // Who asked may be gone.
                let _gone = answer.send(logits);
            }
        }
        let mut queue = self.queue();
        queue.is_busy = !queue.waiting.is_empty();
        !queue.is_busy
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
