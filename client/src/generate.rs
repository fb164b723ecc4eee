//! Generation: prefill the prompt, then one token after another.

mod adjust;
mod error;
mod thin;
mod verify;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use umbel_engine::{EndsError, HiddenStates, Sampler, Sampling};
use umbel_protocol::inference::AnswerRows;

use crate::apart;
use crate::chain::{Chain, Entering, StepTime};
use crate::model::ClientModel;
use crate::speculation::{Drafts, Speculate, Speculator};
use crate::text::grammar::Grammar;
use crate::text::stop::StopStrings;
use crate::text::tokenizer::{TextStream, Tokenizer};
use thin::Round;
use verify::Verified;

pub use adjust::Adjust;
pub use error::GenerateError;

/// Most tokens of the prompt that go through the chain in one step: large enough that weights are read
/// once for many tokens, small enough that a step's tensor (8 MiB at a hidden size of 4096) is no
/// burden on a link.
pub const PREFILL_CHUNK_TOKENS: u32 = 512;

/// Tokens whose embedding is looked up at once: it takes less time than waking a thread for it.
const EMBEDDED_AT_ONCE_MAX: usize = 8;

/// How often one generation may begin anew in another session before it gives up.
const RESTARTS_MAX: u32 = 8;

/// What to generate.
#[derive(Debug, Clone)]
pub struct Generate {
    /// Token ids to continue; at least one.
    pub prompt: Vec<u32>,
    /// Whether the answer goes on with the text of the prompt, so that the space before its first word
    /// is a part of it; otherwise it is a text of its own, as in a chat.
    pub continues: bool,
    /// Most new tokens.
    pub max_tokens: u32,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// What is added to the logits before that.
    pub adjust: Adjust,
    /// The form that the answer is held to, from its first token on.
    pub grammar: Option<Grammar>,
    /// Texts at which the answer ends; they are not part of it.
    pub stop: Vec<String>,
    /// Whether to go on past the model's end-of-sequence token.
    pub ignore_eos: bool,
    /// How many of the largest logits to report with each token; 0 for none.
    pub top_logits: usize,
    /// How many of the likeliest tokens to report with each token, beside the token itself, with the
    /// logarithms of their chances; `None` for not even that.
    pub top_logprobs: Option<usize>,
    /// Most tokens of the prompt that are computed in one step.
    pub prefill_chunk: u32,
    /// Whether tokens are guessed, so that one trip gives several. It changes no token.
    pub speculate: Speculate,
    /// A text that the answer may repeat in part, such as one that it is to edit: it is searched
    /// for guesses, as the prompt is, and changes nothing else.
    pub expected: Vec<u32>,
}

/// One new token.
#[derive(Debug, Clone)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that may be shown now: it can be empty while a character is incomplete or a stop
    /// string may have begun, and ends with what was held back at the last token.
    pub text: String,
    /// The largest logits before any sampling, largest first.
    pub top_logits: Vec<(u32, f32)>,
    /// How likely it was, if that was asked for.
    pub logprobs: Option<Logprobs>,
    /// Where the time went; for the first token, of the whole prefill. Of several tokens that came
    /// with one step, the first has its time and the others none.
    pub time: StepTime,
}

/// Natural logarithms of chances, as the model gives them before any sampling.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// That of the token which was chosen.
    pub chosen: f32,
    /// Those of the likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its answer, or a stop string came up.
    Stop,
    /// The limit of new tokens, or the model's context, is full.
    Length,
}

impl FinishReason {
    /// As the OpenAI API writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

impl Generate {
    /// The greedy continuation of `prompt`, up to 128 tokens.
    #[must_use]
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            continues: true,
            max_tokens: 128,
            sampling: Sampling::greedy(),
            adjust: Adjust::default(),
            grammar: None,
            stop: Vec::new(),
            ignore_eos: false,
            top_logits: 0,
            top_logprobs: None,
            prefill_chunk: PREFILL_CHUNK_TOKENS,
            speculate: Speculate::Off,
            expected: Vec::new(),
        }
    }

    /// Begins with an empty cache, or with what servers hold of the prompt.
    ///
    /// # Errors
    /// [`GenerateError`] where the request cannot be met; nothing has been computed by then.
    pub fn start(self, model: Arc<ClientModel>, chain: Chain) -> Result<Generation, GenerateError> {
        let held = chain.held().to_vec();
        self.resume(model, chain, &held)
    }

    /// Whether this side must see what the model says of each token, and not only what was drawn.
    fn needs_logits(&self) -> bool {
        let adjusted = self.adjust != Adjust::default() || self.grammar.is_some();
        adjusted || self.top_logits > 0 || self.top_logprobs.is_some()
    }

    /// Begins where the chain's cache already holds `cached`, of which it uses what the prompt
    /// begins with.
    ///
    /// # Errors
    /// As [`Generate::start`].
    pub fn resume(
        self,
        model: Arc<ClientModel>,
        chain: Chain,
        cached: &[u32],
    ) -> Result<Generation, GenerateError> {
        let context = model.config().context_tokens.min(chain.tokens_max() as usize);
        if self.prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if self.prompt.len() >= context {
            return Err(GenerateError::PromptTooLong { tokens: self.prompt.len(), context });
        }
        let vocabulary = model.config().vocabulary_size;
        if let Some(&id) = self.prompt.iter().find(|id| **id as usize >= vocabulary) {
            return Err(GenerateError::UnknownToken { id, vocabulary });
        }
        if !chain.is_thin() && !model.has_weights() {
            return Err(GenerateError::NoWeights);
        }
        if chain.is_thin() && (self.needs_logits() || chain.has_prompt()) {
            return Err(GenerateError::NoLogits);
        }
        let shared = cached.iter().zip(&self.prompt).take_while(|(a, b)| a == b).count();
        let sampler = Sampler::new(self.sampling.clone())?;
        let speculate = if chain.is_thin() { &Speculate::Off } else { &self.speculate };
        let speculator = Speculator::new(speculate, &self.expected, context, &sampler);
        Ok(Generation {
            speculator,
            drafts: Drafts::default(),
            sampler,
            text: model.tokenizer().map(if self.continues {
                Tokenizer::continued_stream
            } else {
                Tokenizer::stream
            }),
            stop: StopStrings::new(self.stop.clone()),
            tokens: self.prompt.clone(),
            // The last token of the prompt is always computed: its logits are what is wanted.
            computed: shared.min(self.prompt.len() - 1),
            verified: VecDeque::new(),
            round: Round::default(),
            new_count: 0,
            finished: None,
            restarts: 0,
            context,
            request: self,
            model,
            chain,
        })
    }
}

/// A generation under way. Dropping it ends its session.
pub struct Generation {
    request: Generate,
    model: Arc<ClientModel>,
    chain: Chain,
    sampler: Sampler,
    /// Absent where nothing is guessed, and while it guesses.
    speculator: Option<Speculator>,
    drafts: Drafts,
    text: Option<TextStream>,
    stop: StopStrings,
    /// The prompt and what has been generated.
    tokens: Vec<u32>,
    /// What comes next: the other tokens of a step that gave several.
    verified: VecDeque<Verified>,
    /// Of a thin session.
    round: Round,
    /// How many of all these are in the chain's cache.
    computed: usize,
    new_count: u32,
    context: usize,
    finished: Option<FinishReason>,
    restarts: u32,
}

impl Generation {
    /// Generates to the end; the prompt and all that came.
    ///
    /// # Errors
    /// As [`Generation::next`].
    pub async fn finish(&mut self) -> Result<&[u32], GenerateError> {
        while self.next().await?.is_some() {}
        Ok(&self.tokens)
    }

    /// The next token; `None` once the generation has finished.
    ///
    /// A server that fails is replaced and refilled, which changes no token.
    ///
    /// # Errors
    /// [`GenerateError`] where no chain can be had any more.
    pub async fn next(&mut self) -> Result<Option<Token>, GenerateError> {
        if self.finished.is_none() && self.new_count >= self.request.max_tokens {
            self.finished = Some(FinishReason::Length);
        }
        if self.finished.is_some() {
            return Ok(None);
        }
        if self.verified.is_empty() {
            if self.chain.is_thin() {
                self.step_thin().await?;
            } else {
                self.step().await?;
            }
        }
        let next = self.verified.pop_front().expect("a step gives one token at least");
        let Verified { id, top_logits, logprobs, time } = next;
        self.tokens.push(id);
        self.new_count += 1;
        let text = self.advance(id);
        if self.finished.is_some() {
            self.verified.clear();
        }
        Ok(Some(Token { id, text, top_logits, logprobs, time }))
    }

    /// Why the generation ended; `None` while it has not.
    #[must_use]
    pub const fn finish_reason(&self) -> Option<FinishReason> {
        self.finished
    }

    /// The text at which it ended, where it was one of those that were named.
    #[must_use]
    pub fn stopped_at(&self) -> Option<&str> {
        self.stop.stopped_at()
    }

    /// The prompt and what has been generated.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What came of guessing, so far.
    #[must_use]
    pub const fn drafts(&self) -> Drafts {
        self.drafts
    }

    /// Where the blocks are computed.
    #[must_use]
    pub const fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Gives the chain back, with the tokens that its cache holds.
    #[must_use]
    pub fn into_chain(mut self) -> (Chain, Vec<u32>) {
        self.tokens.truncate(self.computed);
        (self.chain, self.tokens)
    }

    /// Takes every token that is not in the cache through the chain, and begins anew where that
    /// helps: a session mends its route by itself, as long as it keeps what it has sent.
    async fn compute(&mut self) -> Result<(HiddenStates, StepTime), GenerateError> {
        loop {
            match self.compute_once().await {
                Err(GenerateError::Step(error))
                    if error.may_begin_anew() && self.restarts < RESTARTS_MAX =>
                {
                    self.restarts += 1;
                    tracing::warn!(error = %error, "the chain failed; beginning anew");
                    self.chain.reopen(&self.tokens).await?;
                    self.computed = self.chain.held().len().min(self.tokens.len() - 1);
                }
                result => return result,
            }
        }
    }

    /// Hands the tokens in, in chunks that are under way at once, and gives the result of the last
    /// one.
    async fn compute_once(&mut self) -> Result<(HiddenStates, StepTime), GenerateError> {
        let started = Instant::now();
        let size = |size: usize| u32::try_from(size).expect("a context is counted in 32 bits");
        let (begin, tokens) = (size(self.computed), size(self.tokens.len() - self.computed));
        let chunks = self.chain.prefill_chunks(begin, tokens, self.request.prefill_chunk);
        let (mut under_way, mut handed_in) = (Vec::with_capacity(chunks.len()), self.computed);
        for chunk in chunks {
            let end = handed_in + chunk as usize;
            let ids = self.tokens[handed_in..end].to_vec();
            let entering = Entering { hidden: embed(&self.model, ids.clone()).await?, ids };
            let position = size(handed_in);
            let step = self.chain.begin(position, entering, AnswerRows::Last).await;
            under_way.push((end, step));
            handed_in = end;
        }
        let streams = under_way.len() > 1;
        let (mut last, mut time) = (None, StepTime::default());
        for (end, step) in under_way {
            let (leaving, step) = step.finish().await?;
            self.computed = end;
            time.add(step);
            last = Some(leaving);
        }
        if streams {
            // Steps that are under way at once take less than the sum of their times.
            time.total = started.elapsed();
        }
        Ok((last.expect("the last token is never in the cache"), time))
    }

    /// What of the answer may be shown now, and whether this token ends it.
    fn advance(&mut self, id: u32) -> String {
        let ends = self.model.config().eos_token_ids.contains(&id);
        if ends && !self.request.ignore_eos {
            self.finished = Some(FinishReason::Stop);
        } else if self.new_count >= self.request.max_tokens || self.tokens.len() >= self.context {
            self.finished = Some(FinishReason::Length);
        }
        let Some(stream) = &mut self.text else {
            return String::new();
        };
        let mut shown = String::new();
        // The token that ends the answer is no part of its text.
        if self.finished != Some(FinishReason::Stop) {
            let emit = self.stop.push(&stream.push(id));
            shown.push_str(&emit.text);
            if emit.stopped {
                self.finished = Some(FinishReason::Stop);
                return shown;
            }
        }
        if self.finished.is_some() {
            let emit = self.stop.push(&stream.finish());
            shown.push_str(&emit.text);
            if emit.stopped {
                self.finished = Some(FinishReason::Stop);
            } else {
                shown.push_str(&self.stop.finish());
            }
        }
        shown
    }
}

/// What enters the first block for these tokens.
pub(crate) async fn embed(
    model: &Arc<ClientModel>,
    ids: Vec<u32>,
) -> Result<HiddenStates, EndsError> {
    if ids.len() <= EMBEDDED_AT_ONCE_MAX {
        return model.ends().embed(&ids);
    }
    let model = Arc::clone(model);
    apart::compute(move || model.ends().embed(&ids)).await
}

#[cfg(test)]
mod tests;
