//! Whose step is computed next: first come, first served, one at a time.

use std::collections::VecDeque;

use umbel_protocol::error::ErrorCode;
use umbel_protocol::inference::{AnswerRows, HopTiming, Step};
use umbel_protocol::{SessionId, StepId, Tensor};

use super::admission::Refusal;
use super::served::Served;
use super::{JobId, STEPS_QUEUED_PER_SESSION_MAX};
use crate::time::Time;

/// A step that waits for the accelerator.
#[derive(Debug)]
pub(super) struct QueuedStep {
    pub(super) step: Step,
    pub(super) received: Time,
}

/// The step that the accelerator works on, without its payload.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) job: JobId,
    pub(super) session: SessionId,
    pub(super) step: StepId,
    pub(super) position: u32,
    pub(super) trace: Vec<HopTiming>,
    pub(super) replay: bool,
    pub(super) answer_rows: AnswerRows,
    pub(super) received: Time,
    pub(super) started: Time,
    /// Its session ended while it ran, so nobody waits for the result.
    pub(super) abandoned: bool,
}

/// What the accelerator needs of a step.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) session: SessionId,
    pub(super) position: u32,
    pub(super) hidden: Tensor,
}

/// What waits of one session.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waiting {
    pub(super) steps: usize,
    pub(super) tokens: u64,
}

/// The queue in front of the accelerator. It is bounded by the sessions and their steps.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    waiting: VecDeque<QueuedStep>,
    running: Option<Running>,
    jobs: u64,
}

impl Schedule {
    /// Queues a step. What waits of its session from its position on is outdated: the cache would
    /// be cut to that position afterwards, and whoever sends this step sends what follows it too.
    pub(super) fn push(&mut self, step: QueuedStep) {
        let (session, position) = (step.step.session, step.step.position);
        self.waiting
            .retain(|queued| queued.step.session != session || queued.step.position < position);
        self.waiting.push_back(step);
    }

    /// The next step, if the accelerator is free and one waits.
    pub(super) fn start(&mut self, now: Time) -> Option<(JobId, Started)> {
        if self.running.is_some() {
            return None;
        }
        let QueuedStep { step, received } = self.waiting.pop_front()?;
        let job = JobId(self.jobs);
        self.jobs += 1;
        self.running = Some(Running {
            job,
            session: step.session,
            step: step.step,
            position: step.position,
            trace: step.trace,
            replay: step.replay,
            answer_rows: step.answer_rows,
            received,
            started: now,
            abandoned: false,
        });
        let Step { session, position, hidden, .. } = step;
        Some((job, Started { session, position, hidden }))
    }

    /// The step that the accelerator has finished.
    pub(super) fn finish(&mut self, job: JobId) -> Running {
        let running = self.running.take().expect("a job was running");
        assert_eq!(running.job, job, "the accelerator finishes the job that it was given");
        running
    }

    /// How many steps of a session wait that begin before a position, and how many tokens they
    /// have.
    pub(super) fn waiting(&self, session: SessionId, position: u32) -> Waiting {
        let of_session = self
            .waiting
            .iter()
            .filter(|queued| queued.step.session == session && queued.step.position < position);
        of_session.fold(Waiting::default(), |waiting, queued| Waiting {
            steps: waiting.steps + 1,
            tokens: waiting.tokens + u64::from(queued.step.token_count()),
        })
    }

    /// Forgets the steps of a session that has ended.
    pub(super) fn abandon(&mut self, session: SessionId) {
        self.waiting.retain(|queued| queued.step.session != session);
        if let Some(running) = &mut self.running {
            running.abandoned |= running.session == session;
        }
    }

    pub(super) fn depth(&self) -> usize {
        self.waiting.len() + usize::from(self.running.is_some())
    }
}

/// Whether a step fits its session; the position after it.
pub(super) fn check(
    step: &Step,
    served: &Served,
    hidden_size: u32,
    waiting: Waiting,
) -> Result<u32, Refusal> {
    let refuse = |code, detail| Err(Refusal { code, detail });
    let &[tokens, hidden] = step.hidden.shape() else {
        let detail = format!("hidden states are [tokens, {hidden_size}]");
        return refuse(ErrorCode::WrongShape, detail);
    };
    if tokens == 0 || hidden != hidden_size {
        let detail = format!("hidden states are [tokens, {hidden_size}], not [{tokens}, {hidden}]");
        return refuse(ErrorCode::WrongShape, detail);
    }
    if step.position > served.received {
        let detail = format!(
            "the cache has {} tokens, the step begins at {}",
            served.received, step.position
        );
        return refuse(ErrorCode::WrongPosition, detail);
    }
    let end = step.position.checked_add(tokens).filter(|end| *end <= served.tokens_max);
    let Some(end) = end else {
        let detail = format!("the session was opened for {} tokens", served.tokens_max);
        return refuse(ErrorCode::ContextExceeded, detail);
    };
    // A replay brings the whole context once more while a step may wait: never more than twice.
    let too_many_tokens = waiting.tokens + u64::from(tokens) > 2 * u64::from(served.tokens_max);
    if waiting.steps >= STEPS_QUEUED_PER_SESSION_MAX || too_many_tokens {
        let detail = format!("{} steps of the session wait", waiting.steps);
        return refuse(ErrorCode::Busy, detail);
    }
    Ok(end)
}
