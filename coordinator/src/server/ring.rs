//! Thin sessions: ids of tokens enter the first block, and the last server draws the tokens.
//!
//! What was drawn goes to the client, and at once to the session's first server as the next step, so
//! that a token crosses each link of the route once. The client may begin anew at any time, with a
//! step of a higher number: what was still going round is older then, and dropped where it would
//! enter the first block.

use umbel_protocol::error::{ErrorCode, ProtocolViolation};
use umbel_protocol::inference::{
    AnswerRows, Draw, NextHop, OpenSession, Sampling, ServerMessage, Step,
};
use umbel_protocol::{DType, PeerId, SessionId, StepId, Tensor};

use super::admission::Refusal;
use super::served::Served;
use super::{Job, LinkId, Output, Server, ServerConfig};
use crate::time::Time;

/// A token to be drawn from what the last token of a job leaves the last block with.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawJob {
    /// Where the token will stand: the draw's place in the noise of its seed.
    pub position: u32,
    /// How it is chosen.
    pub sampling: Sampling,
    /// The tokens before it, where the sampling needs them.
    pub text: Vec<u32>,
}

/// What a thin session is to this server, besides its blocks.
#[derive(Debug)]
pub(super) struct Thin {
    vocabulary_size: u32,
    /// The session's first block is here: ids enter.
    pub(super) enters: bool,
    /// Its last block is here: tokens are drawn.
    pub(super) draws: bool,
    drawer: Option<PeerId>,
    /// The highest number of a step that has entered.
    last_step: Option<StepId>,
    drawing: Option<Drawing>,
}

/// How tokens are drawn, and where they go.
#[derive(Debug)]
struct Drawing {
    sampling: Sampling,
    from: u32,
    until: u32,
    end_ids: Vec<u32>,
    /// What was said of the tokens so far and what was drawn since, where the sampling needs it.
    text: Vec<u32>,
    /// How many of these the client has said, which it knows.
    said: usize,
    first: Option<NextHop>,
}

/// Refuses a thin session where an end of the model among its blocks is not held.
pub(super) fn check_ends(config: &ServerConfig, open: &OpenSession) -> Result<(), Refusal> {
    let at_an_end = open.blocks.start() == 0 || open.blocks.end() == config.block_count;
    if !open.thin || !at_an_end || config.vocabulary_size.is_some() {
        return Ok(());
    }
    let detail = "this server holds neither embedding nor head".to_owned();
    Err(Refusal { code: ErrorCode::BlocksNotServed, detail })
}

impl Thin {
    /// `None` for a session that is not.
    pub(super) fn of(config: &ServerConfig, open: &OpenSession) -> Option<Self> {
        open.thin.then(|| Self {
            vocabulary_size: config.vocabulary_size.unwrap_or(0),
            enters: open.blocks.start() == 0,
            draws: open.blocks.end() == config.block_count,
            drawer: open.drawer,
            last_step: None,
            drawing: None,
        })
    }

    /// Another server draws from now on.
    pub(super) const fn adopt(&mut self, drawer: Option<PeerId>) {
        self.drawer = drawer;
    }

    /// A step has entered the first block.
    pub(super) fn entered(&mut self, step: StepId) {
        self.last_step = self.last_step.max(Some(step));
    }

    /// Refuses what is no row of ids that the model has.
    pub(super) fn check_ids(&self, ids: &Tensor) -> Result<(), Refusal> {
        let refuse = |detail| Err(Refusal { code: ErrorCode::WrongShape, detail });
        let Some(ids) = ids.to_ids() else {
            return refuse("ids of tokens are [tokens, 1]".to_owned());
        };
        let vocabulary = self.vocabulary_size;
        match ids.iter().find(|id| **id >= vocabulary) {
            Some(id) => refuse(format!("token {id} of a vocabulary of {vocabulary} tokens")),
            None => Ok(()),
        }
    }

    /// Where tokens go: the session's name there.
    pub(super) fn ring(&self) -> Option<SessionId> {
        let first = self.drawing.as_ref().and_then(|drawing| drawing.first.as_ref());
        first.map(|first| first.session)
    }

    /// Gives up the first server, if tokens went there.
    pub(super) fn lose(&mut self, to: SessionId) -> bool {
        let is_ring = self.ring() == Some(to);
        if is_ring && let Some(drawing) = &mut self.drawing {
            drawing.first = None;
        }
        is_ring
    }

    fn draw_job(&self, end: u32) -> Option<DrawJob> {
        let drawing = self.drawing.as_ref().filter(|_| self.draws)?;
        if end < drawing.from {
            return None;
        }
        let text = if drawing.sampling.needs_text() {
            // Less is there only for a step from before the client began another text.
            drawing.text.get(..end as usize)?.to_vec()
        } else {
            Vec::new()
        };
        Some(DrawJob { position: end, sampling: drawing.sampling, text })
    }
}

impl Drawing {
    /// A token was drawn for a position; whether it is to go on.
    fn drawn(&mut self, position: u32, id: u32, tokens_max: u32) -> bool {
        let at = position as usize;
        // A token may still come that was drawn for an earlier text.
        if self.sampling.needs_text() && at >= self.said && at <= self.text.len() {
            self.text.truncate(at);
            self.text.push(id);
        }
        let ends = self.end_ids.contains(&id) || !(self.from..self.until).contains(&position);
        self.first.is_some() && position < tokens_max && !ends
    }
}

impl Server {
    /// Takes up how tokens are to be drawn.
    pub(super) fn draw(
        &mut self,
        link: LinkId,
        draw: Draw,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        let (session, own) = (draw.session, self.config.peer);
        let Some(served) = self.own(link, session, "Draw")? else {
            return Ok(());
        };
        let (packing, tokens_max) = (served.packing, served.tokens_max as usize);
        let Some(thin) = served.thin.as_mut().filter(|thin| thin.draws) else {
            return Err(ProtocolViolation::Unexpected { message: "Draw" });
        };
        if draw.text.len() > tokens_max {
            let reason = Refusal::new(ErrorCode::ContextExceeded, "the text is too long");
            self.fail(session, None, reason, now);
            return Ok(());
        }
        let Draw { sampling, from, until, end_ids, mut text, first, .. } = draw;
        let (mut before, said) = (None, text.len());
        if let Some(drawing) = thin.drawing.take() {
            before = drawing.first;
            if drawing.text.starts_with(&text) {
                // What was drawn here last had not reached the client yet when it said this.
                text = drawing.text;
            }
        }
        thin.drawing =
            Some(Drawing { sampling, from, until, end_ids, text, said, first: first.clone() });
        if before != first {
            // What goes to this very server takes no link.
            let away = |hop: &NextHop| hop.peer != own;
            if let Some(before) = before.filter(away) {
                self.outputs.push_back(Output::Disconnect { session, to: before.session });
            }
            if let Some(next) = first.filter(away) {
                self.outputs.push_back(Output::Connect { session, next, packing });
            }
        }
        self.send(link, ServerMessage::DrawTaken { session });
        Ok(())
    }

    /// Takes a token that the last server has drawn.
    pub(super) fn drawn_pushed(&mut self, from: PeerId, step: Step, now: Time) {
        let served = self.sessions.get(&step.session);
        let Some((served, thin)) = served.and_then(|of| Some((of, of.thin.as_ref()?))) else {
            return;
        };
        let drew = thin.drawer == Some(from);
        // From before the client began anew, or for the second time.
        let old = thin.last_step.is_some_and(|last| step.step <= last);
        if !drew || old || served.awaits_refill || step.position != served.received {
            tracing::debug!(session = %step.session, step = step.step.0, "dropped a drawn token");
            return;
        }
        let link = served.link;
        let step = Step { replay: false, answer_rows: AnswerRows::Last, ..step };
        if let Err((session, _, refusal)) = self.enqueue(step, now) {
            self.refuse_push(link, session, from, refusal);
        }
    }

    /// What is to be drawn from a job, where it ends a step that is to be answered.
    pub(super) fn draw_job(&self, job: &Job) -> Option<DrawJob> {
        let thin = self.sessions.get(&job.session)?.thin.as_ref()?;
        if !self.schedule.answers(job.session) {
            return None;
        }
        thin.draw_job(job.position + job.hidden.shape()[0])
    }

    /// Answers a step that ends at `end` with the token that was drawn, and sends it on. `step` has
    /// the token's id, or what nothing was drawn from.
    pub(super) fn drawn(&mut self, step: Step, end: u32, now: Time) {
        let served = self.sessions.get_mut(&step.session).expect("a step of it was running");
        served.computed = end;
        if step.replay || !served.is_wanted(&step, end) {
            return;
        }
        let id = step.hidden.to_ids().and_then(|ids| ids.first().copied());
        let (link, tokens_max) = (served.link, served.tokens_max);
        let drawing = served.thin.as_mut().and_then(|thin| thin.drawing.as_mut());
        let first = id.zip(drawing).and_then(|(id, drawing)| {
            let goes_on = drawing.drawn(end, id, tokens_max);
            drawing.first.clone().filter(|_| goes_on)
        });
        let (session, id) = (step.session, id.unwrap_or(0));
        if let Some(first) = &first {
            let step = Step {
                session: first.session,
                step: step.step.next(),
                position: end,
                hidden: Tensor::of_ids(&[id]),
                trace: Vec::new(),
                answer_rows: AnswerRows::Last,
                replay: false,
                goes_on: false,
            };
            if first.peer == self.config.peer {
                self.drawn_pushed(self.config.peer, step, now);
            } else {
                self.outputs.push_back(Output::Push { session, to: first.session, step });
            }
        }
        let answer = Step {
            position: end - 1,
            hidden: Tensor::of_ids(&[id]),
            goes_on: first.is_some(),
            ..step
        };
        self.send(link, ServerMessage::Output(answer));
    }
}

impl Served {
    pub(super) fn enters_ids(&self) -> bool {
        self.thin.as_ref().is_some_and(|thin| thin.enters)
    }

    pub(super) fn draws(&self) -> bool {
        self.thin.as_ref().is_some_and(|thin| thin.draws)
    }
}

/// Whether a tensor is of ids, and no hidden states.
pub(super) fn is_of_ids(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::Id
}
