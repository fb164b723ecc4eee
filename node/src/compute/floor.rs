//! Who computes: passes of sessions first, then what sessions wait for that are about to begin, and
//! training in between.
//!
//! There is one set of threads, and whoever has the floor uses all of them. Training gives the floor up
//! between two parts of its work as soon as a pass waits for it, so that a pass waits for one part at
//! most, however many train: a product of one matrix with 64 tokens, which is less than a pass that
//! decodes takes itself, since such a pass reads all matrices of all blocks; one of an adapter's products
//! with a microbatch; the attention of 2^15 pairs of tokens for each thread; or what a step does to a pair
//! of the adapter's matrices. On a GPU products and attention are of a whole microbatch. What passes have waited for of it is counted. What is computed before a session
//! begins has parts as short, and gives way to passes as training does to both; on a GPU a session's adapter
//! is taken up as the session opens, in one part.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Command, Computed, Engine};
use crate::metrics::server::Waits;

/// The right to compute, which one thread has at a time.
#[derive(Clone, Default)]
pub struct Floor(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    waits: Waits,
}

#[derive(Default)]
struct State {
    taken: bool,
    /// How many wait, by their haste.
    waiting: [usize; 3],
    /// Parts of trainings that have ended.
    parts: u64,
}

/// Who goes before whom: the first before all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// A pass, and whatever else the engine is told.
    Urgent,
    /// What a session waits for that is about to begin.
    Soon,
    /// Training.
    Patient,
}

impl State {
    /// Whether somebody waits who goes before.
    fn gives_way(&self, haste: Haste) -> bool {
        self.waiting[..haste as usize].iter().any(|waiting| *waiting > 0)
    }
}

/// An engine that takes the floor before each command.
pub struct Urgent<E> {
    engine: E,
    floor: Floor,
}

impl Floor {
    /// What passes have waited for.
    #[must_use]
    pub fn waits(&self) -> &Waits {
        &self.0.waits
    }

    /// The engine, which goes first.
    pub fn before<E: Engine>(&self, engine: E) -> Urgent<E> {
        Urgent { engine, floor: self.clone() }
    }

    /// Does `work` when nobody else computes or waits to. It is to call what it is given between its
    /// parts, upon which passes that wait go first.
    pub fn patiently<R>(&self, work: impl FnOnce(&dyn Fn()) -> R) -> R {
        self.in_parts(Haste::Patient, work)
    }

    /// The same for a session that is about to begin: passes alone go first.
    pub(super) fn soon<R>(&self, work: impl FnOnce(&dyn Fn()) -> R) -> R {
        self.in_parts(Haste::Soon, work)
    }

    fn in_parts<R>(&self, haste: Haste, work: impl FnOnce(&dyn Fn()) -> R) -> R {
        let of_training = u64::from(haste == Haste::Patient);
        let (taken, _) = self.take(haste);
        let pause = || {
            let mut state = self.state();
            state.parts += of_training;
            if state.gives_way(haste) {
                // It waits from the moment when the floor is free, or a training might go before it.
                state.taken = false;
                self.0.changed.notify_all();
                drop(self.wait(state, haste));
            }
        };
        let result = work(&pause);
        self.state().parts += of_training;
        drop(taken);
        result
    }

    /// Waits for the floor; gives the parts of trainings that ended meanwhile, too.
    fn take(&self, haste: Haste) -> (Taken<'_>, u64) {
        let state = self.state();
        let before = state.parts;
        let state = self.wait(state, haste);
        (Taken(self), state.parts - before)
    }

    /// Has the floor when it returns.
    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>, haste: Haste) -> MutexGuard<'a, State> {
        state.waiting[haste as usize] += 1;
        let waits = |state: &mut State| state.taken || state.gives_way(haste);
        state = self.0.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        state.waiting[haste as usize] -= 1;
        state.taken = true;
        state
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
        let (is_pass, asked) = (matches!(command, Command::Pass(_)), Instant::now());
        let (_taken, parts) = self.floor.take(Haste::Urgent);
        if is_pass && parts > 0 {
            self.floor.waits().pass_has_waited(parts, asked.elapsed());
        }
        self.engine.run(command)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use umbel_coordinator::server::{Batch, JobId};

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
                let (_taken, parts) = urgent.take(Haste::Urgent);
                urgent_says.send("pass").unwrap();
                assert_eq!(parts, 1, "it waited for the first part alone");
            });
            while !floor.state().gives_way(Haste::Patient) {
                thread::yield_now();
            }
            go_on.send(()).unwrap();
        });
        assert_eq!(said.iter().collect::<Vec<_>>(), ["first part", "pass", "second part"]);
        floor.patiently(|pause| pause());
    }

    #[test]
    fn what_a_session_waits_for_goes_between_two_parts_of_a_training_and_behind_a_pass() {
        let floor = Floor::default();
        let (say, said) = mpsc::channel();
        thread::scope(|scope| {
            let in_parts =
                |haste: Haste, name: [&'static str; 2], begun: Option<mpsc::Sender<()>>| {
                    let (floor, say) = (floor.clone(), say.clone());
                    let (go_on, may_go_on) = mpsc::channel::<()>();
                    scope.spawn(move || {
                        floor.in_parts(haste, |pause| {
                            say.send(name[0]).unwrap();
                            begun.into_iter().for_each(|begun| begun.send(()).unwrap());
                            may_go_on.recv().unwrap();
                            pause();
                            say.send(name[1]).unwrap();
                        });
                    });
                    go_on
                };
            let waits = |haste: Haste| {
                while floor.state().waiting[haste as usize] == 0 {
                    thread::yield_now();
                }
            };
            let (begun, has_begun) = mpsc::channel();
            let train = in_parts(Haste::Patient, ["train", "train on"], Some(begun));
            has_begun.recv().unwrap();
            let (begun, has_begun) = mpsc::channel();
            let prepare = in_parts(Haste::Soon, ["prepare", "prepare on"], Some(begun));
            waits(Haste::Soon);
            train.send(()).unwrap();
            has_begun.recv().unwrap();
            let pass = in_parts(Haste::Urgent, ["pass", "pass on"], None);
            waits(Haste::Urgent);
            pass.send(()).unwrap();
            prepare.send(()).unwrap();
        });
        drop(say);
        let order = ["train", "prepare", "pass", "pass on", "prepare on", "train on"];
        assert_eq!(said.iter().collect::<Vec<_>>(), order);
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
                            let (_taken, _) = floor.take(Haste::Urgent);
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
        assert!(!state.taken && state.waiting == [0; 3]);
    }

    /// An engine that computes nothing, and says so.
    struct Idle;

    impl Engine for Idle {
        fn run(&mut self, _: Command) -> Option<Computed> {
            None
        }
    }

    #[test]
    fn a_pass_waits_for_one_part_at_most_however_many_train_and_what_it_waits_for_is_counted() {
        let floor = Floor::default();
        let mut engine = floor.before(Idle);
        let pass = || Command::Pass(Batch { id: JobId(0), jobs: Vec::new() });
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        floor.patiently(|pause| (0..100).for_each(|_| pause()));
                    }
                });
            }
            // Some find a training at work, on however few processors.
            while floor.waits().passes() < 100 {
                engine.run(pass());
                // What is no pass waits too, and is not counted.
                engine.run(Command::Pages(Vec::new()));
                thread::yield_now();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(floor.waits().parts() <= floor.waits().passes(), "one part each at most");
    }
}
