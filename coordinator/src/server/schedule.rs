//! Whose steps are computed next, and how many tokens of them in one pass.
//!
//! A pass takes the steps of all sessions that decode, and fills what is left of its budget with
//! parts of longer ones. Clients take turns, and so do the sessions of each. The queue is bounded
//! by the sessions and the steps of each.

mod check;
mod gather;
mod pace;
mod turn;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use umbel_protocol::inference::Step;
use umbel_protocol::{PeerId, SessionId, Span, StepId, Tensor};

use super::ring::is_of_ids;
use super::{Batch, ComputeFailure, Job, JobId};
use crate::time::Time;
pub(super) use check::check;
use gather::Gathering;
use pace::{Pace, Taken};
use turn::{Kind, Turns};

/// Most tokens of a step that counts as decoding: one token, or guesses that are checked together.
/// Such a step is never cut.
pub const DECODE_TOKENS_MAX: u32 = 16;

/// Most tokens of one step in one pass: what a pass needs beside weights and caches grows with
/// them, to a quarter of a gigabyte in a block with an MLP of 28,672 values in binary32.
pub const PART_TOKENS_MAX: u32 = 1_024;

/// The steps of one session that wait or are being computed, in their order.
#[derive(Debug)]
struct Queue {
    client: PeerId,
    blocks: Span,
    steps: VecDeque<Queued>,
    /// The pass that last took of them, or before which they came.
    turn: u64,
}

/// A step of which some tokens may have been computed.
#[derive(Debug)]
struct Queued {
    step: Step,
    received: Time,
    /// Since when it waits for its next pass.
    since: Time,
    /// What was computed of it so far.
    results: Vec<Tensor>,
    /// Tokens of it that were.
    done: u32,
    queue: Duration,
    compute: Duration,
}

/// What the accelerator works on.
#[derive(Debug)]
struct Running {
    job: JobId,
    parts: Vec<Part>,
    taken: Taken,
}

/// Consecutive tokens of the first step of a session.
#[derive(Debug)]
struct Part {
    session: SessionId,
    tokens: u32,
    /// Its session ended while it ran, so nobody waits for the result.
    abandoned: bool,
}

/// What waits of one session.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    pub(super) steps: usize,
    pub(super) tokens: u64,
}

/// What a pass has come to for one session.
#[derive(Debug)]
pub(super) enum Finished {
    /// A step is computed; `step` has what leaves the last block.
    Step { step: Step, end: u32, received: Time, queue: Duration, compute: Duration },
    /// The rest of the step is still to come.
    Part { session: SessionId, position: u32 },
    /// The session cannot go on.
    Failed { session: SessionId, step: StepId, failure: ComputeFailure },
}

/// The queues in front of the accelerator, and what it works on.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    queues: BTreeMap<SessionId, Queue>,
    turns: Turns,
    pace: Pace,
    gathering: Gathering,
    /// Until when the next pass waits for sessions that are due.
    waits: Option<Time>,
    running: Option<Running>,
    passes: u64,
}

impl Schedule {
    /// Puts a step of `client` behind those of its session, which goes through `blocks`.
    ///
    /// What waits from its position on is outdated: the cache would be cut to that position
    /// afterwards, and whoever sends this step sends what follows it too.
    pub(super) fn push(&mut self, client: PeerId, blocks: Span, step: Step, now: Time) {
        let turn = self.passes;
        self.turns.join(client, turn);
        let (session, position) = (step.session, step.position);
        self.gathering.came(session, now);
        let mut begun = self.begun(session);
        let steps = VecDeque::new();
        let queue = self.queues.entry(session).or_insert(Queue { client, blocks, steps, turn });
        queue.steps.retain(|queued| std::mem::take(&mut begun) || queued.step.position < position);
        queue.steps.push_back(Queued {
            step,
            received: now,
            since: now,
            results: Vec::new(),
            done: 0,
            queue: Duration::ZERO,
            compute: Duration::ZERO,
        });
    }

    /// The next pass, if the accelerator is free and a step waits. Where others may want to decode
    /// meanwhile (`is_shared`), it is kept short.
    pub(super) fn start(&mut self, is_shared: bool, now: Time) -> Option<Batch> {
        self.waits = None;
        if self.running.is_some() || self.queues.is_empty() {
            return None;
        }
        let candidates = self.turns.order(&self.queues);
        if candidates.iter().all(|candidate| candidate.kind == Kind::Decode) {
            self.waits = self.gathering.wait(self.pace.cost(), now);
            if self.waits.is_some() {
                return None;
            }
        }
        self.gathering.begun(now);
        self.passes += 1;
        let id = JobId(self.passes);
        let mut taken = self.pace.begin(is_shared, &candidates);
        let (mut jobs, mut parts) = (Vec::new(), Vec::new());
        for candidate in candidates {
            let Some(tokens) = taken.take(&candidate) else {
                continue;
            };
            self.turns.taken(&candidate, self.passes);
            let queue = self.queues.get_mut(&candidate.session).expect("it has a queue");
            queue.turn = self.passes;
            let queued = queue.steps.front_mut().expect("only sessions with steps have a queue");
            queued.queue += now.since(queued.since);
            jobs.push(Job {
                session: candidate.session,
                blocks: queue.blocks,
                position: queued.step.position + queued.done,
                hidden: queued.step.hidden.rows(queued.done, queued.done + tokens),
                draw: None,
            });
            parts.push(Part { session: candidate.session, tokens, abandoned: false });
        }
        self.running = Some(Running { job: id, parts, taken });
        Some(Batch { id, jobs })
    }

    /// When the next pass begins that waits for sessions that are due, if they do not come before.
    pub(super) const fn waits(&self) -> Option<Time> {
        self.waits
    }

    /// What the pass that ran has come to, for each session that still waits for it.
    pub(super) fn finish(
        &mut self,
        job: JobId,
        results: Vec<Result<Tensor, ComputeFailure>>,
        compute: Duration,
        now: Time,
    ) -> Vec<Finished> {
        let running = self.running.take().expect("a pass was running");
        assert_eq!(running.job, job, "the accelerator finishes the pass that it was given");
        assert_eq!(running.parts.len(), results.len(), "there is a result for each job");
        self.pace.note(&running.taken, compute);
        self.gathering.ended(now);
        let parts = running.parts.into_iter().zip(results).filter(|(part, _)| !part.abandoned);
        parts.map(|(part, result)| self.finish_part(&part, result, compute, now)).collect()
    }

    fn finish_part(
        &mut self,
        part: &Part,
        result: Result<Tensor, ComputeFailure>,
        compute: Duration,
        now: Time,
    ) -> Finished {
        let session = part.session;
        let queue = self.queues.get_mut(&session).expect("a step of it was running");
        let queued = queue.steps.front_mut().expect("a step of it was running");
        let step = queued.step.step;
        match result {
            // A token was drawn, from the last row of all.
            Ok(id) if is_of_ids(&id) => queued.results = vec![id],
            Ok(hidden) => queued.results.push(hidden),
            Err(failure) => return Finished::Failed { session, step, failure },
        }
        queued.done += part.tokens;
        queued.compute += compute;
        queued.since = now;
        if queued.done < queued.step.token_count() {
            return Finished::Part { session, position: queued.step.position + queued.done };
        }
        let Queued { mut step, received, mut results, queue: waited, compute, .. } =
            queue.steps.pop_front().expect("it is the first");
        if queue.steps.is_empty() {
            self.remove(session);
        }
        let whole = if results.len() == 1 { results.pop() } else { join(&results) };
        let Some(hidden) = whole else {
            let (code, detail) = (umbel_protocol::ErrorCode::Internal, "results of other shapes");
            let failure = ComputeFailure { code, detail: detail.to_owned() };
            return Finished::Failed { session, step: step.step, failure };
        };
        let end = step.position + step.token_count();
        step.hidden = hidden;
        self.gathering.left(session, now);
        Finished::Step { step, end, received, queue: waited, compute }
    }

    /// How many steps of a session wait for their first pass that begin before a position, and how
    /// many tokens they have.
    pub(super) fn waiting(&self, session: SessionId, position: u32) -> Load {
        let Some(queue) = self.queues.get(&session) else {
            return Load::default();
        };
        let waiting = queue.steps.iter().skip(usize::from(self.begun(session)));
        let before = waiting.filter(|queued| queued.step.position < position);
        before.fold(Load::default(), |load, queued| Load {
            steps: load.steps + 1,
            tokens: load.tokens + u64::from(queued.step.token_count()),
        })
    }

    /// Whether the pass that runs ends a step of a session that is to be answered.
    pub(super) fn answers(&self, session: SessionId) -> bool {
        let parts = self.running.iter().flat_map(|running| &running.parts);
        let part = parts.into_iter().find(|part| part.session == session && !part.abandoned);
        let front = self.queues.get(&session).and_then(|queue| queue.steps.front());
        let Some((part, front)) = part.zip(front) else {
            return false;
        };
        front.done + part.tokens == front.step.token_count() && !front.step.replay
    }

    /// Whether the first step of a session is being computed, or was in part.
    fn begun(&self, session: SessionId) -> bool {
        let parts = self.running.iter().flat_map(|running| &running.parts);
        let runs = parts.into_iter().any(|part| part.session == session && !part.abandoned);
        let front = self.queues.get(&session).and_then(|queue| queue.steps.front());
        runs || front.is_some_and(|queued| queued.done > 0)
    }

    /// Whether the accelerator works.
    pub(super) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether a step of a session that is not computed to its end begins before a position.
    pub(super) fn begins_before(&self, session: SessionId, position: u32) -> bool {
        let queue = self.queues.get(&session);
        queue.is_some_and(|queue| queue.steps.iter().any(|of| of.step.position < position))
    }

    /// Forgets the steps of a session that has ended.
    pub(super) fn abandon(&mut self, session: SessionId) {
        self.gathering.forget(session);
        self.remove(session);
        let parts = self.running.iter_mut().flat_map(|running| &mut running.parts);
        for part in parts.filter(|part| part.session == session) {
            part.abandoned = true;
        }
    }

    /// Steps that wait or are being computed.
    pub(super) fn depth(&self) -> usize {
        self.queues.values().map(|queue| queue.steps.len()).sum()
    }

    fn remove(&mut self, session: SessionId) {
        let Some(removed) = self.queues.remove(&session) else {
            return;
        };
        if self.queues.values().all(|queue| queue.client != removed.client) {
            self.turns.leave(removed.client);
        }
    }
}

/// The rows of all `parts`; `None` where they do not fit each other.
fn join(parts: &[Tensor]) -> Option<Tensor> {
    let first = parts.first()?;
    let &[_, width] = first.shape() else {
        return None;
    };
    let is_alike = |part: &Tensor| {
        part.dtype() == first.dtype() && matches!(*part.shape(), [_, found] if found == width)
    };
    if !parts.iter().all(is_alike) {
        return None;
    }
    let tokens = parts.iter().map(|part| part.shape()[0]).sum();
    let payload: Vec<u8> = parts.iter().flat_map(|part| part.payload().iter().copied()).collect();
    Tensor::new(first.dtype(), vec![tokens, width], payload.into()).ok()
}

#[cfg(test)]
impl Schedule {
    /// Of each session the tokens of its first step that are not computed yet.
    pub(super) fn heads(&self) -> impl Iterator<Item = (u128, u32)> {
        self.queues.iter().filter_map(|(session, queue)| {
            let queued = queue.steps.front()?;
            Some((session.number(), queued.step.token_count() - queued.done))
        })
    }
}
