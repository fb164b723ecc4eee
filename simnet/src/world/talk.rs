//! A client whose sessions are thin: ids go in, and what is drawn comes back.

use std::collections::VecDeque;
use std::time::Duration;

use umbel_coordinator::server::DrawJob;
use umbel_coordinator::session::{DrawWanted, Input};
use umbel_protocol::inference::{AnswerRows, Sampling};
use umbel_protocol::{Span, Tensor};

use super::World;
use super::client::{Answer, Client, REFERENCE};
use crate::oracle::{draw, embed};
use crate::workload::Turn;

/// What has been said in a session.
#[derive(Debug, Default)]
pub(super) struct Talk {
    /// All tokens.
    text: Vec<u32>,
    /// How many of them hops have in their caches for certain.
    cached: usize,
    /// The ends of the steps under way, in order.
    under_way: VecDeque<usize>,
    /// Tokens that are still to be drawn in this turn.
    left: u32,
    penalty: bool,
    turns: u64,
}

impl Client {
    pub(super) const fn is_thin(&self) -> bool {
        self.config.thin_vocabulary.is_some()
    }

    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: if self.thin.penalty { 1.5 } else { 1.0 },
            // Another one each turn, so that a draw as in the turn before is noticed.
            seed: self.thin.turns,
        }
    }

    /// What the oracle draws behind the text up to `end`, whose tokens from `begin` on are new.
    fn reference(&mut self, begin: usize, end: usize) -> u32 {
        let blocks = Span::new(0, self.config.block_count).expect("a model has blocks");
        let hidden = embed(&self.thin.text[begin..end]);
        let (position, at) = (size(end), size(begin));
        let leaving = self.reference.step(REFERENCE, blocks, at, &hidden);
        let sampling = self.sampling();
        let text = if sampling.needs_text() { self.thin.text[..end].to_vec() } else { Vec::new() };
        draw(&leaving, &DrawJob { position, sampling, text })
    }
}

impl World {
    /// Begins the next turn, or closes the session where there is none; whether it did.
    pub(super) fn next_turn(&mut self, client: usize) -> bool {
        let of = &mut self.clients[client];
        let Some(Turn { back, prompt, answer, unwanted, penalty }) = of.plan.turns.pop_front()
        else {
            self.tell_own(client, Input::Close);
            self.clients[client].sessions_done += 1;
            return true;
        };
        let talk = &mut of.thin;
        talk.text.truncate(talk.text.len().saturating_sub(back));
        talk.cached = talk.cached.min(talk.text.len());
        let mut ends: Vec<usize> = Vec::new();
        for chunk in prompt {
            talk.text.extend(chunk);
            ends.push(talk.text.len());
        }
        (talk.left, talk.penalty) = (answer, penalty);
        talk.turns += 1;
        talk.under_way.clear();
        let (from, text) = (talk.text.len(), talk.text.clone());
        let until = from + answer as usize + unwanted as usize - 1;
        let sampling = of.sampling();
        let (from, until) = (size(from), size(until));
        let end_ids = Vec::new();
        let wanted = DrawWanted { sampling, from, until, end_ids, text };
        self.tell_own(client, Input::Draw(wanted));
        let mut begin = self.clients[client].thin.cached;
        for end in ends {
            self.hand_in(client, begin, end);
            begin = end;
        }
        false
    }

    /// Takes note of what was drawn; whether the session was closed thereupon.
    pub(super) fn drawn(
        &mut self,
        client: usize,
        (id, goes_on): (u32, bool),
        took: Duration,
    ) -> bool {
        let at = self.now;
        let of = &mut self.clients[client];
        let Some(end) = of.thin.under_way.pop_front() else {
            self.broken(format!("client {client}: an answer that nobody has asked for"));
            return false;
        };
        let begin = std::mem::replace(&mut of.thin.cached, end);
        let tokens = size(end - begin);
        let expected = of.reference(begin, end);
        of.answers.push(Answer { at, took, tokens });
        if end < of.thin.text.len() {
            return false;
        }
        if id != expected {
            self.broken(format!("client {client}: drew {id} at {end}, not {expected}"));
        }
        let talk = &mut self.clients[client].thin;
        talk.text.push(id);
        talk.left -= 1;
        if talk.left == 0 {
            return self.next_turn(client);
        }
        if goes_on {
            talk.under_way.push_back(end + 1);
            return false;
        }
        // The ring does not close: tokens go over here.
        self.hand_in(client, end, end + 1);
        false
    }

    fn hand_in(&mut self, client: usize, begin: usize, end: usize) {
        let talk = &mut self.clients[client].thin;
        talk.under_way.push_back(end);
        let (position, hidden) = (size(begin), Tensor::of_ids(&talk.text[begin..end]));
        let answer_rows = AnswerRows::Last;
        self.tell_own(client, Input::Step { position, hidden, ids: Vec::new(), answer_rows });
        self.endanger(client);
    }

    fn tell_own(&mut self, client: usize, input: Input) {
        if let Some(session) = &mut self.clients[client].session {
            let result = session.handle(input, self.now);
            assert_eq!(result, Ok(()), "the client does not wrong itself");
        }
    }
}

fn size(size: usize) -> u32 {
    u32::try_from(size).expect("a context is counted in 32 bits")
}
