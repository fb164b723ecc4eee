//! What a hop has sent on, kept so that it can be sent again to whoever takes the next hop's place.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use umbel_protocol::inference::{AnswerRows, Step};
use umbel_protocol::{SessionId, StepId, Tensor};

/// Tokens of one step of a replay: as many as the chunks in which clients send their prompts.
pub const REPLAY_CHUNK_TOKENS: u32 = 512;

/// The results of one session, by position, without gaps.
#[derive(Debug, Default)]
pub struct Journal {
    entries: VecDeque<Entry>,
    bytes: usize,
    begin: u32,
}

#[derive(Debug, Clone)]
struct Entry {
    step: StepId,
    position: u32,
    hidden: Tensor,
    answer_rows: AnswerRows,
}

/// Results on their way out of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The step that they were part of, or the last one of several.
    pub step: StepId,
    /// Where the first one belongs.
    pub position: u32,
    /// `[tokens, hidden]`.
    pub hidden: Tensor,
    /// Which rows the client wants of what comes of them.
    pub answer_rows: AnswerRows,
    /// Whether the client has had an answer for all of them.
    pub replay: bool,
}

impl Journal {
    /// Takes up the results of a step, and forgets what was there from its position on.
    pub fn record(&mut self, step: &Step) {
        let (position, hidden) = (step.position, step.hidden.clone());
        if position < self.begin || position > self.end() {
            self.entries.clear();
            self.bytes = 0;
            self.begin = position;
        }
        self.truncate(position);
        self.bytes += hidden.payload().len();
        let (step, answer_rows) = (step.step, step.answer_rows);
        self.entries.push_back(Entry { step, position, hidden, answer_rows });
    }

    /// The first position that is kept.
    #[must_use]
    pub const fn begin(&self) -> u32 {
        self.begin
    }

    /// The position after the last one that is kept.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.entries.back().map_or(self.begin, Entry::end)
    }

    /// Bytes of the tensors that are kept.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets everything, but not how far it came.
    pub fn evict(&mut self) {
        self.begin = self.end();
        self.entries.clear();
        self.bytes = 0;
    }

    /// Everything from `from` on, in order: what lies below `settled` as a replay in large chunks,
    /// the rest in the steps that it came in. `None` where some of it is no longer kept.
    #[must_use]
    pub fn replay(&self, from: u32, settled: u32) -> Option<Vec<Recorded>> {
        if from < self.begin {
            return None;
        }
        let mut chunks = Vec::new();
        let mut pending: Vec<Entry> = Vec::new();
        let mut tokens = 0;
        for entry in self.entries.iter().filter(|entry| entry.end() > from) {
            let entry = entry.from(from);
            let (settled_part, open_part) = entry.split(settled);
            let mut settled_part = settled_part;
            while let Some(part) = settled_part {
                let (fits, rest) = part.split(part.position + REPLAY_CHUNK_TOKENS - tokens);
                tokens += fits.as_ref().map_or(0, Entry::tokens);
                pending.extend(fits);
                if tokens == REPLAY_CHUNK_TOKENS {
                    chunks.extend(merge(&mut pending));
                    tokens = 0;
                }
                settled_part = rest;
            }
            if let Some(part) = open_part {
                chunks.extend(merge(&mut pending));
                let Entry { step, position, hidden, answer_rows } = part;
                chunks.push(Recorded { step, position, hidden, answer_rows, replay: false });
            }
        }
        chunks.extend(merge(&mut pending));
        Some(chunks)
    }

    fn truncate(&mut self, position: u32) {
        while let Some(last) = self.entries.pop_back() {
            self.bytes -= last.hidden.payload().len();
            if last.position >= position {
                continue;
            }
            let kept = if last.end() > position { last.before(position) } else { last };
            self.bytes += kept.hidden.payload().len();
            self.entries.push_back(kept);
            return;
        }
    }
}

impl Entry {
    fn tokens(&self) -> u32 {
        self.hidden.shape()[0]
    }

    fn end(&self) -> u32 {
        self.position + self.tokens()
    }

    /// The part that begins at `position` at the earliest; it has some.
    fn from(&self, position: u32) -> Self {
        let (_, after) = self.split(position);
        after.expect("it ends after the position")
    }

    /// The part that ends at `position` at the latest, with a payload of its own: a slice would keep
    /// the rows that are forgotten in memory, where nobody counts them.
    fn before(&self, position: u32) -> Self {
        let (before, _) = self.split(position);
        let before = before.expect("it begins before the position");
        let payload = Bytes::copy_from_slice(before.hidden.payload());
        let (dtype, shape) = (before.hidden.dtype(), before.hidden.shape().to_vec());
        let hidden = Tensor::new(dtype, shape, payload).expect("the rows are those of a tensor");
        Self { hidden, ..before }
    }

    /// The parts before and from `position`.
    fn split(&self, position: u32) -> (Option<Self>, Option<Self>) {
        let cut = position.clamp(self.position, self.end()) - self.position;
        let part = |from: u32, to: u32| {
            let position = self.position + from;
            let hidden = || self.hidden.rows(from, to);
            (from < to).then(|| Self { position, hidden: hidden(), ..*self })
        };
        (part(0, cut), part(cut, self.tokens()))
    }
}

/// Consecutive parts as one.
fn merge(parts: &mut Vec<Entry>) -> Option<Recorded> {
    let (first, last) = (parts.first()?, parts.last()?);
    let (position, step, dtype) = (first.position, last.step, first.hidden.dtype());
    let shape = vec![last.end() - position, first.hidden.shape()[1]];
    let hidden = if parts.len() == 1 {
        first.hidden.clone()
    } else {
        let mut payload = BytesMut::new();
        for part in parts.iter() {
            payload.extend_from_slice(part.hidden.payload());
        }
        Tensor::new(dtype, shape, payload.freeze()).expect("the rows of a session are of one kind")
    };
    parts.clear();
    // Nobody answers what has been answered.
    let answer_rows = AnswerRows::Last;
    Some(Recorded { step, position, hidden, answer_rows, replay: true })
}

/// What of the results goes on to a destination that has some of them already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlet {
    /// Tokens whose results the destination has; `None` where it has what comes before the first step
    /// that goes there.
    next_position: Option<u32>,
    /// The first step whose results it lacks.
    next_step: StepId,
}

impl Outlet {
    /// An outlet to a destination that has the results of so many tokens, and of every step
    /// before this one.
    #[must_use]
    pub const fn new(next_position: u32, next_step: StepId) -> Self {
        Self { next_position: Some(next_position), next_step }
    }

    /// An outlet to a destination that is as new as this side: it has taken over as much of a prefix
    /// as comes before the first step, and lacks this step and all behind it.
    #[must_use]
    pub const fn unused(next_step: StepId) -> Self {
        Self { next_position: None, next_step }
    }

    /// The part of `step` that goes on: of a replay what is new; nothing of a step beyond a gap,
    /// since what fills the gap brings this step again; nothing of a step that is over.
    pub fn pass(&mut self, mut step: Step) -> Option<Step> {
        let end = step.end_position()?;
        if step.step < self.next_step {
            return None;
        }
        let next_position = *self.next_position.get_or_insert(step.position);
        let gap = step.position > next_position;
        let known = step.replay && end <= next_position;
        if gap || known {
            return None;
        }
        if step.replay && step.position < next_position {
            let from = next_position - step.position;
            step.hidden = step.hidden.rows(from, end - step.position);
            step.position = next_position;
        }
        self.next_position = Some(end);
        Some(step)
    }

    /// Whether a step of these tokens goes on, that is none of this side's journal: notes it if so.
    pub fn takes(&mut self, step: StepId, position: u32, end: u32) -> bool {
        let follows = self.next_position.is_none_or(|next_position| position <= next_position);
        let wanted = follows && step >= self.next_step;
        if wanted {
            self.next_position = Some(end);
        }
        wanted
    }

    /// What `journal` holds for a destination that has `next_position` tokens, as steps for the
    /// session that is called `session` there. `None` where it does not hold all of it.
    pub fn refill(
        &mut self,
        journal: &Journal,
        settled: u32,
        session: SessionId,
    ) -> Option<Vec<Step>> {
        let next_position = self.next_position.unwrap_or(0);
        let chunks = journal.replay(next_position, settled)?;
        let step = |recorded: Recorded| Step {
            session,
            step: recorded.step,
            position: recorded.position,
            hidden: recorded.hidden,
            trace: Vec::new(),
            replay: recorded.replay,
            goes_on: false,
            answer_rows: recorded.answer_rows,
        };
        let wanted = |recorded: &Recorded| recorded.step >= self.next_step;
        let steps = chunks.into_iter().filter(wanted).map(step).collect();
        self.next_position = Some(next_position.max(journal.end()));
        Some(steps)
    }
}

#[cfg(test)]
mod tests;
