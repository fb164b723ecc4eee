//! One session: what waits of it, how far it has come, and what it may be asked for next.

use std::collections::{BTreeMap, VecDeque};

use umbel_protocol::training::{
    ForwardMicrobatch, OpenTraining, StateKind, StateValues, TrainerMessage, TrainingAnswer,
};
use umbel_protocol::{ErrorCode, PeerId, ProtocolViolation, Tensor};

use super::admission::{magnitudes, message_bytes_max, values};
use super::{HostConfig, IDLE_LEASE, MESSAGES_UNANSWERED_MAX, ORPHAN_LEASE, Work};
use crate::server::{LinkId, ShardId};
use crate::time::Time;

/// A number that grows with each piece of work.
pub(super) type Turn = u64;

/// A session that is held.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) trainer: PeerId,
    /// `None` where its link is gone.
    pub(super) link: Option<LinkId>,
    /// Bytes that it has reserved.
    pub(super) bytes: u64,
    pub(super) turn: Turn,
    /// Whether the accelerator has heard of it.
    pub(super) begun: bool,
    shard: ShardId,
    open: OpenTraining,
    /// Optimizer steps that its state has seen, and what was answered to the last of them here.
    steps: u64,
    last_step: Option<TrainingAnswer>,
    /// Tokens of the microbatches between their way forward and their way back.
    kept: BTreeMap<u64, u32>,
    waiting: VecDeque<TrainerMessage>,
    /// What it had of a step is to be dropped before anything else is done.
    reset: bool,
    /// That it is open is to be said.
    greeting: bool,
    /// The work that the accelerator has is of a link that is gone.
    outdated: bool,
    running: bool,
    last_used: Time,
}

/// What is to be done for a session.
pub(super) enum Next {
    Compute(Work),
    Answer(LinkId, TrainingAnswer),
    Fail(ErrorCode, String),
    Close(LinkId),
}

impl Held {
    pub(super) fn new(
        trainer: PeerId,
        link: LinkId,
        (shard, open): (ShardId, OpenTraining),
        bytes: u64,
        now: Time,
    ) -> Self {
        Self {
            trainer,
            link: Some(link),
            bytes,
            turn: 0,
            begun: false,
            shard,
            steps: open.steps,
            open,
            last_step: None,
            kept: BTreeMap::new(),
            waiting: VecDeque::new(),
            reset: false,
            greeting: true,
            outdated: false,
            running: false,
            last_used: now,
        }
    }

    /// Goes on over another link, and returns the one before, if it is still open.
    pub(super) fn resume(
        &mut self,
        link: LinkId,
        from: PeerId,
        open: &OpenTraining,
        now: Time,
    ) -> Result<Option<LinkId>, ProtocolViolation> {
        if self.trainer != from {
            return Err(ProtocolViolation::NotAllowed { message: "OpenTraining" });
        }
        // Steps that it has taken since are no other content.
        let same = OpenTraining { steps: self.open.steps, ..open.clone() } == self.open;
        if !same {
            return Err(ProtocolViolation::Unexpected { message: "OpenTraining" });
        }
        let former = self.link;
        self.orphan(now);
        self.link = Some(link);
        self.greeting = true;
        Ok(former)
    }

    /// Its link is gone, and with it what was under way.
    pub(super) fn orphan(&mut self, now: Time) {
        self.link = None;
        self.last_used = now;
        self.waiting.clear();
        self.kept.clear();
        self.greeting = false;
        self.outdated = self.running;
        self.reset = self.begun;
    }

    pub(super) fn lease_end(&self) -> Time {
        self.last_used + if self.link.is_some() { IDLE_LEASE } else { ORPHAN_LEASE }
    }

    pub(super) fn push(
        &mut self,
        config: &HostConfig,
        message: TrainerMessage,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        let unanswered = self.waiting.len() + usize::from(self.running);
        if unanswered >= MESSAGES_UNANSWERED_MAX {
            let (field, max) = ("messages without an answer", MESSAGES_UNANSWERED_MAX);
            return Err(ProtocolViolation::TooMany { field, max, found: unanswered + 1 });
        }
        if payload_bytes(&message) > message_bytes_max(config, &self.open) {
            return Err(ProtocolViolation::OutOfBounds { field: "the size of a message" });
        }
        self.last_used = now;
        self.waiting.push_back(message);
        Ok(())
    }

    /// Whether there is something to do for it.
    pub(super) fn waits(&self) -> bool {
        !self.running && (self.reset || self.greeting || !self.waiting.is_empty())
    }

    /// Whether its trainer has said that it is to be forgotten.
    pub(super) fn is_to_close(&self) -> bool {
        self.waiting.iter().any(|message| matches!(message, TrainerMessage::Close))
    }

    /// Whether that is all there is to do for it.
    pub(super) fn only_closes(&self) -> bool {
        let idle = !self.running && !self.reset && !self.greeting;
        idle && self.waiting.len() == 1 && self.is_to_close()
    }

    /// The next thing to do; there is one.
    pub(super) fn next(&mut self, config: &HostConfig, now: Time) -> Next {
        self.last_used = now;
        if std::mem::take(&mut self.reset) {
            return self.compute(Work::Reset);
        }
        if !self.begun {
            self.begun = true;
            let (shard, open) = (self.shard, Box::new(self.open.clone()));
            return self.compute(Work::Begin { shard, open });
        }
        let Some(link) = self.link else {
            return Next::Fail(ErrorCode::Internal, "nobody waits for it".to_owned());
        };
        if std::mem::take(&mut self.greeting) {
            let value_count = values(config, &self.open);
            // A state that was never stepped from may have been written in part.
            let (steps, resumed) = (self.steps, self.steps > self.open.steps);
            return Next::Answer(link, TrainingAnswer::Opened { steps, resumed, value_count });
        }
        let message = self.waiting.pop_front().expect("something waits of it");
        if let Err((code, detail)) = self.check(config, &message) {
            return Next::Fail(code, detail.to_owned());
        }
        if matches!(message, TrainerMessage::Close) {
            return Next::Close(link);
        }
        match (&message, &self.last_step) {
            (TrainerMessage::Step(step), Some(answer)) if step.number == self.steps => {
                Next::Answer(link, answer.clone())
            }
            (_, _) => self.compute(Work::Message(message)),
        }
    }

    /// Takes note of what the accelerator answers, and says to whom it goes.
    pub(super) fn computed(
        &mut self,
        answer: TrainingAnswer,
        now: Time,
    ) -> Option<(LinkId, TrainingAnswer)> {
        self.running = false;
        self.last_used = now;
        if let TrainingAnswer::Stepped { number, .. } = answer {
            // It is taken, whoever may still wait for the answer.
            self.steps = number;
            self.last_step = Some(answer.clone());
            self.kept.clear();
        }
        if std::mem::take(&mut self.outdated) {
            return None;
        }
        Some((self.link?, answer))
    }

    /// Work that has no answer is done.
    pub(super) fn done(&mut self) {
        self.running = false;
        self.outdated = false;
    }

    fn compute(&mut self, work: Work) -> Next {
        self.running = true;
        Next::Compute(work)
    }

    /// Whether a message makes sense now, and takes note of the microbatches that are kept.
    fn check(
        &mut self,
        config: &HostConfig,
        message: &TrainerMessage,
    ) -> Result<(), (ErrorCode, &'static str)> {
        match message {
            TrainerMessage::Open(_) | TrainerMessage::Close => Ok(()),
            TrainerMessage::Write(state) => self.check_write(config, state),
            TrainerMessage::Forward(forward) => self.check_forward(config, forward),
            TrainerMessage::Backward { microbatch, gradient, .. } => {
                let expected = self.kept.remove(microbatch);
                if expected.is_none() {
                    let detail = "the microbatch has not gone forward";
                    return Err((ErrorCode::WrongPosition, detail));
                }
                check_rows(config, gradient, expected)
            }
            TrainerMessage::Read { offset, count, .. } => {
                let end = offset.checked_add(u64::from(*count));
                check(
                    end.is_some_and(|end| end <= values(config, &self.open)),
                    "the session has not as many values",
                )
            }
            TrainerMessage::RowNorms { offset, count } => {
                let end = offset.checked_add(u64::from(*count));
                check(
                    end.is_some_and(|end| end <= magnitudes(config, &self.open)),
                    "the session has not as many magnitudes",
                )
            }
            TrainerMessage::Step(step) if step.number == self.steps && self.last_step.is_some() => {
                Ok(())
            }
            TrainerMessage::Step(step) => {
                if self.steps.checked_add(1) != Some(step.number) {
                    return Err((ErrorCode::WrongPosition, "not the next step"));
                }
                if !self.kept.is_empty() {
                    let detail = "a microbatch has not come back yet";
                    return Err((ErrorCode::WrongPosition, detail));
                }
                Ok(())
            }
        }
    }

    fn check_write(
        &self,
        config: &HostConfig,
        state: &StateValues,
    ) -> Result<(), (ErrorCode, &'static str)> {
        // The order of values and steps would else decide what they mean.
        let in_time = state.kind == StateKind::Gradients || self.steps == self.open.steps;
        check(in_time, "a state is written before the first step")?;
        let end = state.offset.checked_add(u64::from(state.values.shape()[0]));
        let fits = end.is_some_and(|end| end <= values(config, &self.open));
        check(fits, "the session has not as many values")
    }

    fn check_forward(
        &mut self,
        config: &HostConfig,
        forward: &ForwardMicrobatch,
    ) -> Result<(), (ErrorCode, &'static str)> {
        check_rows(config, &forward.hidden, None)?;
        let longest = forward.sequences.iter().map(|sequence| sequence.tokens).max();
        if longest.is_none_or(|tokens| tokens > config.context_tokens) {
            let detail = "a sequence is longer than the model's context";
            return Err((ErrorCode::ContextExceeded, detail));
        }
        let tokens = forward.hidden.shape()[0];
        let kept: u64 = self.kept.values().map(|&tokens| u64::from(tokens)).sum();
        if kept + u64::from(tokens) > u64::from(self.open.tokens_max) {
            let detail = "more tokens than the session was opened for";
            return Err((ErrorCode::ContextExceeded, detail));
        }
        if !forward.evaluate && self.kept.insert(forward.microbatch, tokens).is_some() {
            let detail = "the microbatch is under way already";
            return Err((ErrorCode::WrongPosition, detail));
        }
        Ok(())
    }
}

fn check(holds: bool, detail: &'static str) -> Result<(), (ErrorCode, &'static str)> {
    if holds { Ok(()) } else { Err((ErrorCode::WrongShape, detail)) }
}

fn payload_bytes(message: &TrainerMessage) -> u64 {
    let tensor = match message {
        TrainerMessage::Write(state) => &state.values,
        TrainerMessage::Forward(forward) => &forward.hidden,
        TrainerMessage::Backward { gradient, .. } => gradient,
        TrainerMessage::Open(_)
        | TrainerMessage::Read { .. }
        | TrainerMessage::RowNorms { .. }
        | TrainerMessage::Step(_)
        | TrainerMessage::Close => return 0,
    };
    tensor.payload().len() as u64
}

/// Whether a tensor has rows of this model, and as many as are expected.
fn check_rows(
    config: &HostConfig,
    tensor: &Tensor,
    expected: Option<u32>,
) -> Result<(), (ErrorCode, &'static str)> {
    let fits = matches!(*tensor.shape(), [tokens, width]
        if width == config.hidden_size && expected.is_none_or(|expected| expected == tokens));
    check(fits, "a tensor of another shape than the microbatch")
}
