//! What clients want: sessions of a prompt, an answer token by token, and now and then a rollback.

use std::collections::VecDeque;
use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::random::Random;
use umbel_protocol::inference::AnswerRows;

/// How many different tokens there are.
const VOCABULARY: usize = 1_000;

/// Steps to take, each from a position on with these tokens; a position below the end of the last
/// step is a rollback.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Tokens for which room is asked.
    pub tokens_max: u32,
    /// Position and tokens of each step.
    pub steps: VecDeque<(u32, Vec<u32>)>,
    /// Whether each hop is to have a spare.
    pub standby: bool,
    /// Most steps that are under way at once, of those that follow one another; at least one is.
    pub window: usize,
    /// Which rows of the results are wanted.
    pub answer_rows: AnswerRows,
    /// The tokens with which the client says that the session is to begin; it may err. `None` where
    /// it says nothing, of what comes either.
    pub says: Option<Vec<u32>>,
    /// Of a thin session, what is to be answered instead of steps.
    pub turns: VecDeque<Turn>,
}

impl Plan {
    /// The tokens of the first steps, as long as one follows the other.
    #[must_use]
    pub fn beginning(&self) -> Vec<u32> {
        let mut text = Vec::new();
        for (position, tokens) in &self.steps {
            if *position as usize != text.len() {
                break;
            }
            text.extend(tokens);
        }
        text
    }

    /// Leaves out what need not be computed, where the first `held` tokens are as the client has said.
    /// Where the first step begins then; steps that are left out altogether.
    pub fn skip(&mut self, held: u32) -> (u32, usize) {
        let says = self.says.as_deref().unwrap_or_default();
        let alike = says.iter().zip(self.beginning()).take_while(|(a, b)| **a == *b).count();
        let begin = held.min(u32::try_from(alike).unwrap_or(u32::MAX));
        let (mut skipped, mut reached) = (0, 0);
        while reached < begin
            && let Some((position, tokens)) = self.steps.front_mut()
        {
            let end = *position + u32::try_from(tokens.len()).unwrap_or(u32::MAX);
            if end > begin {
                tokens.drain(..(begin - *position) as usize);
                *position = begin;
                break;
            }
            reached = end;
            self.steps.pop_front();
            skipped += 1;
        }
        (begin, skipped)
    }
}

/// A part of a conversation in a thin session.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    /// So many tokens of the text are taken back first.
    pub back: usize,
    /// Tokens that are added, in the chunks in which they are handed in.
    pub prompt: Vec<Vec<u32>>,
    /// Tokens that are to be drawn.
    pub answer: u32,
    /// Tokens that would go on being drawn, but the next turn begins.
    pub unwanted: u32,
    /// Whether a draw depends on all tokens before.
    pub penalty: bool,
}

/// The smallest and the largest of what is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Between<T>(pub T, pub T);

impl Between<u32> {
    /// One of them.
    pub fn draw(self, random: &mut Random) -> u32 {
        let width = self.1.saturating_sub(self.0) as usize;
        self.0 + u32::try_from(random.below(width + 1)).expect("below a 32-bit width")
    }
}

impl Between<Duration> {
    /// One of them.
    pub fn draw(self, random: &mut Random) -> Duration {
        self.0 + self.1.saturating_sub(self.0).mul_f64(random.unit())
    }
}

/// Sessions one after another.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// No session begins from this moment on.
    pub until: Time,
    /// At most so many sessions.
    pub sessions: u32,
    /// Tokens of the first step.
    pub prompt: Between<u32>,
    /// Tokens that follow, one a step.
    pub answer: Between<u32>,
    /// How likely a step begins before the end of what there is.
    pub rollback: f64,
    /// From the end of a session to the beginning of the next.
    pub pause: Between<Duration>,
    /// Whether each hop is to have a spare.
    pub standby: bool,
}

impl Workload {
    /// One session, of which everything is known in advance.
    #[must_use]
    pub fn plan(&self, random: &mut Random) -> Plan {
        let (prompt, answer) = (self.prompt.draw(random), self.answer.draw(random));
        let mut plan =
            Plan { tokens_max: prompt + answer + 16, standby: self.standby, ..Plan::default() };
        plan.steps.push_back((0, tokens(prompt, random)));
        let mut end = prompt;
        for _ in 0..answer {
            if self.rollback > 0.0 && random.unit() < self.rollback {
                end = end.saturating_sub(Between(1, 8).draw(random));
            }
            plan.steps.push_back((end, tokens(1, random)));
            end += 1;
        }
        plan
    }
}

/// So many tokens by chance.
pub fn tokens(count: u32, random: &mut Random) -> Vec<u32> {
    (0..count).map(|_| u32::try_from(random.below(VOCABULARY)).expect("a small number")).collect()
}
