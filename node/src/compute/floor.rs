//! Who computes: passes of sessions first, and training in between.
//!
//! There is one set of threads, and whoever has the floor uses all of them. Training gives the floor up
//! between two parts of its work as soon as a pass waits for it, so that a pass waits for one part at
//! most: a product of one matrix with 64 tokens, which is less than a pass that decodes takes itself,
//! since such a pass reads all matrices of all blocks; or the attention of one sequence in as many heads
//! as there are threads.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Command, Computed, Engine};

/// The right to compute, which one thread has at a time.
#[derive(Clone, Default)]
pub struct Floor(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    taken: bool,
    /// Passes that wait.
    urgent: usize,
}

/// An engine that takes the floor before each command.
pub struct Urgent<E> {
    engine: E,
    floor: Floor,
}

impl Floor {
    /// The engine, which goes first.
    pub fn before<E: Engine>(&self, engine: E) -> Urgent<E> {
        Urgent { engine, floor: self.clone() }
    }

    /// Does `work` when nobody else computes or waits to. It is to call what it is given between its
    /// parts, upon which passes that wait go first.
    pub fn patiently<R>(&self, work: impl FnOnce(&dyn Fn()) -> R) -> R {
        let taken = self.take(false);
        let pause = || {
            if self.state().urgent > 0 {
                self.free();
                std::mem::forget(self.take(false));
            }
        };
        let result = work(&pause);
        drop(taken);
        result
    }

    fn take(&self, urgent: bool) -> Taken<'_> {
        let mut state = self.state();
        state.urgent += usize::from(urgent);
        let waits = |state: &mut State| state.taken || (!urgent && state.urgent > 0);
        state = self.0.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        state.urgent -= usize::from(urgent);
        state.taken = true;
        Taken(self)
    }

    fn free(&self) {
        self.state().taken = false;
        self.0.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that could panic is done with the lock held.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The floor, until it is dropped.
struct Taken<'a>(&'a Floor);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.free();
    }
}

impl<E: Engine> Engine for Urgent<E> {
    fn run(&mut self, command: Command) -> Option<Computed> {
        let _taken = self.floor.take(true);
        self.engine.run(command)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn what_is_urgent_goes_between_two_parts_of_what_is_patient() {
        let floor = Floor::default();
        let (say, said) = mpsc::channel();
        let (begun, has_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let (patient, patient_says) = (floor.clone(), say.clone());
            scope.spawn(move || {
                patient.patiently(|pause| {
                    patient_says.send("first part").unwrap();
                    begun.send(()).unwrap();
                    may_go_on.recv().unwrap();
                    pause();
                    patient_says.send("second part").unwrap();
                });
            });
            has_begun.recv().unwrap();
            let (urgent, urgent_says) = (floor.clone(), say);
            scope.spawn(move || {
                let _taken = urgent.take(true);
                urgent_says.send("pass").unwrap();
            });
            while floor.state().urgent == 0 {
                thread::yield_now();
            }
            go_on.send(()).unwrap();
        });
        assert_eq!(said.iter().collect::<Vec<_>>(), ["first part", "pass", "second part"]);
        floor.patiently(|pause| pause());
    }

    #[test]
    fn one_computes_at_a_time() {
        let floor = Floor::default();
        let computing = Mutex::new(());
        thread::scope(|scope| {
            for urgent in [true, false, true, false] {
                let (floor, computing) = (&floor, &computing);
                scope.spawn(move || {
                    for _ in 0..200 {
                        if urgent {
                            let _taken = floor.take(true);
                            drop(computing.try_lock().expect("nobody else computes"));
                        } else {
                            floor.patiently(|pause| {
                                drop(computing.try_lock().expect("nobody else computes"));
                                pause();
                                drop(computing.try_lock().expect("nobody else computes"));
                            });
                        }
                    }
                });
            }
        });
        let state = floor.state();
        assert!(!state.taken && state.urgent == 0);
    }
}
