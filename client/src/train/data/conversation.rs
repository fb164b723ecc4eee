//! Conversations as texts to learn from.

use super::{Example, LineError};
use crate::text::chat_template::{ChatTemplate, Message};
use crate::text::tokenizer::Tokenizer;

/// Who says what is learned of a conversation.
pub(super) const LEARNED_ROLE: &str = "assistant";

/// A conversation as it is told to a model: cut where answers begin and end, as it is when the model is
/// asked.
pub(super) struct Told<'a> {
    pub(super) messages: Vec<Message>,
    /// Of each message whether it is learned, if it is an answer.
    pub(super) learned: Vec<bool>,
    pub(super) template: &'a ChatTemplate,
    pub(super) tokenizer: &'a Tokenizer,
}

impl Told<'_> {
    /// One text, or one for each answer that is learned where the template writes earlier turns otherwise
    /// once they are not the last, as those do that forget thoughts.
    pub(super) fn examples(&self, tokens_max: usize) -> Result<Vec<Example>, LineError> {
        if self.answers().next().is_none() {
            return Err(LineError::NoAnswer);
        }
        match self.whole()? {
            Some(example) => Ok(vec![example]),
            None => self.each(tokens_max),
        }
    }

    /// Where the answers are among the messages.
    fn answers(&self) -> impl Iterator<Item = usize> {
        let messages = self.messages.iter().enumerate();
        messages.filter(|(_, message)| message.role == LEARNED_ROLE).map(|(index, _)| index)
    }

    /// All of it, if the template writes what was said alike whatever follows.
    fn whole(&self) -> Result<Option<Example>, LineError> {
        let mut parts = Vec::new();
        let (mut written, mut last_answer) = (String::new(), String::new());
        for index in self.answers() {
            let before = self.template.render(&self.messages[..index], true)?;
            let behind = self.template.render(&self.messages[..=index], false)?;
            let (Some(asked), Some(answer)) =
                (before.strip_prefix(&written), behind.strip_prefix(&before))
            else {
                return Ok(None);
            };
            let asked_ids = if written.is_empty() {
                self.tokenizer.encode_chat(asked)?
            } else {
                self.tokenizer.encode_behind(&last_answer, asked)?
            };
            parts.push((asked_ids, false));
            parts.push((self.tokenizer.encode_behind(asked, answer)?, self.learned[index]));
            last_answer = answer.to_owned();
            written = behind;
        }
        Ok(Some(Example::of_parts(parts)))
    }

    /// Each answer behind what the model is told when it is asked for it.
    fn each(&self, tokens_max: usize) -> Result<Vec<Example>, LineError> {
        let mut examples = Vec::new();
        let mut is_full = false;
        for index in self.answers().filter(|&index| self.learned[index]) {
            if is_full {
                // No room is left for the later ones either: reading them would take the square of the time.
                examples.push(Example::of_text(Vec::new()));
                continue;
            }
            let before = self.template.render(&self.messages[..index], true)?;
            let answer = self.answer(index, &before)?;
            let ids = self.tokenizer.encode_chat(&before)?;
            is_full = ids.len() >= tokens_max;
            let learned = self.tokenizer.encode_behind(&before, &answer)?;
            examples.push(Example::of_parts([(ids, false), (learned, true)]));
        }
        Ok(examples)
    }

    /// What the template makes of the answer at `index`, behind `before`, with which it asks for it.
    fn answer(&self, index: usize, before: &str) -> Result<String, LineError> {
        let (asking, answered) = (&self.messages[..index], &self.messages[..=index]);
        let behind = self.template.render(answered, false)?;
        if let Some(answer) = behind.strip_prefix(before) {
            return Ok(answer.to_owned());
        }
        // Mistral's templates show what the system says in the user's turn if that is the last. Behind
        // this turn both go on alike.
        let last = index.checked_sub(1).ok_or(LineError::Template)?;
        let asked = self.template.render_behind(asking, last, true)?;
        let answered = self.template.render_behind(answered, last, false)?;
        let answer = answered.zip(asked);
        let answer = answer.and_then(|(all, asked)| Some(all.strip_prefix(&asked)?.to_owned()));
        answer.ok_or(LineError::Template)
    }
}
