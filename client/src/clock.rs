//! The clock that the machines of [`umbel_coordinator`] are shown.

use std::time::Instant;

use umbel_coordinator::Time;

/// A clock that began when it was made.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> Time {
        Time::after_start(self.0.elapsed())
    }

    /// Waits until it shows `deadline`; for ever where there is none. This is how the timer of a
    /// machine is armed.
    pub async fn wait_until(&self, deadline: Option<Time>) {
        match deadline {
            Some(deadline) => {
                let at = tokio::time::Instant::from_std(self.0 + deadline.elapsed());
                tokio::time::sleep_until(at).await;
            }
            None => std::future::pending().await,
        }
    }
}
