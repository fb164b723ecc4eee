//! What will happen, in the order in which it will.

use std::collections::BTreeMap;

use umbel_coordinator::Time;

/// Events by time; of those at the same time, the first that was planned comes first.
#[derive(Debug)]
pub struct Queue<E> {
    events: BTreeMap<(Time, u64), E>,
    planned: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { events: BTreeMap::new(), planned: 0 }
    }
}

impl<E> Queue<E> {
    /// Plans an event.
    pub fn plan(&mut self, at: Time, event: E) {
        self.events.insert((at, self.planned), event);
        self.planned += 1;
    }

    /// The next event and its time.
    pub fn pop(&mut self) -> Option<(Time, E)> {
        let ((at, _), event) = self.events.pop_first()?;
        Some((at, event))
    }
}
