//! Answers that are held to a form: JSON that a schema describes.
//!
//! Before a token is chosen, all that cannot follow are ruled out; what may follow is found by
//! `llguidance`, which walks the vocabulary as a tree of bytes beside a parser of the form. Schemas
//! come from strangers: what compiling and following one may cost is bounded by that crate's limits,
//! which no schema in use comes near.

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::tokenizer::Tokenizer;

/// The forms that answers of one model can be held to.
pub struct Grammars {
    factory: ParserFactory,
    ends: Vec<u32>,
}

/// A form, and how far an answer has come in it.
pub struct Grammar {
    matcher: Matcher,
    /// Tokens that end an answer, the one that the matcher knows first.
    ends: Vec<u32>,
}

impl Grammars {
    /// For a model of this vocabulary, whose answers end with any of `ends`. Files may name some that are
    /// not in it, with which no answer ends.
    ///
    /// # Errors
    /// [`GrammarError`] where the vocabulary cannot be used so.
    pub fn new(
        tokenizer: &Tokenizer,
        vocabulary_size: usize,
        ends: &[u32],
    ) -> Result<Self, GrammarError> {
        let size = u32::try_from(vocabulary_size).map_err(|_| GrammarError::Vocabulary)?;
        let ends: Vec<u32> = ends.iter().copied().filter(|&id| id < size).collect();
        let end = *ends.first().ok_or(GrammarError::Vocabulary)?;
        let special = tokenizer.special_ids();
        let words: Vec<Vec<u8>> = (0..size)
            .map(|id| {
                let bytes = tokenizer.bytes(id);
                if !special.contains(&id) && !ends.contains(&id) {
                    return bytes;
                }
                // No byte of a text, so that a sign is never taken for what it is spelled like.
                [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat()
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(size, end), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory =
            ParserFactory::new_simple(&environment).map_err(|error| failed(&error))?;
        factory.quiet();
        // A message is for people, and shall not repeat what they have sent.
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory, ends })
    }

    /// JSON that `schema` describes, without space between its parts.
    ///
    /// # Errors
    /// [`GrammarError`] where the schema is malformed, says what is not supported, or is too large.
    pub fn json_schema(&self, schema: &Value) -> Result<Grammar, GrammarError> {
        // Where space may stand, a small model may go on with nothing else.
        let mut schema = schema.clone();
        let Some(fields) = schema.as_object_mut() else {
            return Err(GrammarError::Invalid { reason: "a schema is an object".to_owned() });
        };
        fields.insert("x-guidance".to_owned(), json!({ "whitespace_flexible": false }));
        let grammar = TopLevelGrammar::from_json_schema(schema);
        let parser = self.factory.create_parser(grammar).map_err(|error| failed(&error))?;
        Ok(Grammar { matcher: Matcher::new(Ok(parser)), ends: self.ends.clone() })
    }

    /// Any JSON object.
    ///
    /// # Errors
    /// None that is known; see [`Grammars::json_schema`].
    pub fn json_object(&self) -> Result<Grammar, GrammarError> {
        self.json_schema(&json!({ "type": "object" }))
    }
}

impl Grammar {
    /// Makes tokens that cannot follow impossible.
    pub(crate) fn restrict(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| failed(&error))?;
        let may_end = allowed.is_allowed(self.ends[0]);
        for (id, logit) in (0..).zip(logits) {
            if !(allowed.is_allowed(id) || may_end && self.ends.contains(&id)) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Goes on by a token that was chosen.
    pub(crate) fn accept(&mut self, id: u32) -> Result<(), GrammarError> {
        if self.ends.contains(&id) {
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(|error| failed(&error))
    }
}

impl Clone for Grammar {
    /// Each goes on by itself.
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), ends: self.ends.clone() }
    }
}

impl fmt::Debug for Grammar {
    /// Whether it has failed; not the form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("error", &self.matcher.is_error()).finish_non_exhaustive()
    }
}

fn failed(error: &dyn fmt::Display) -> GrammarError {
    GrammarError::Invalid { reason: error.to_string() }
}

/// A form that no answer can be held to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The model has no token that ends an answer, or too many tokens.
    #[error("answers of this model cannot be held to a form: no token ends them")]
    Vocabulary,
    /// The schema cannot be followed.
    #[error("the answer cannot be held to this form: {reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
