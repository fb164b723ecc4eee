//! Texts as tokens, before a request has its turn.
//!
//! It takes seconds of a processor, and a hundred times the text in memory, for the longest of bodies
//! (2.4 s and 480 MB for 4 MB, measured); so only a few are at it at once, and a text that cannot fit is
//! refused unread.

use std::sync::Arc;

use umbel_client::GenerateError;
use umbel_client::text::chat_template::{Message, TemplateValues};
use umbel_client::text::tokenizer::Tokenizer;
use umbel_client::text::tools::Tools;

use super::error::ApiError;
use super::{Gateway, Turn, apart};

impl Gateway {
    /// Does what a request needs before it has its turn, when one of the places for that is free. Who
    /// goes away leaves its place when the work is done.
    pub(super) async fn prepare<T: Send + 'static>(
        self: &Arc<Self>,
        turn: Turn,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = self.admission.encoding(turn).await?;
        let gateway = Arc::clone(self);
        apart(move || {
            let _place = place;
            work(&gateway)
        })
        .await
    }

    /// The tokens of a conversation, in which the model may ask for functions, and whose last turn may
    /// be the beginning of its answer.
    pub(super) async fn encode_chat(
        self: &Arc<Self>,
        messages: Vec<Message>,
        tools: Option<Tools>,
        is_begun: bool,
    ) -> Result<Vec<u32>, ApiError> {
        if !is_begun {
            return self.encode_chat_with(messages, tools, TemplateValues::default()).await;
        }
        let work = move |gateway: &Self| {
            gateway.check_messages(&messages)?;
            Ok(gateway.opened.model.encode_begun(&messages, tools.as_ref())?)
        };
        self.prepare(Turn::First, work).await
    }

    /// The tokens of a conversation whose template is told more than the conversation.
    pub(super) async fn encode_chat_with(
        self: &Arc<Self>,
        messages: Vec<Message>,
        tools: Option<Tools>,
        values: TemplateValues,
    ) -> Result<Vec<u32>, ApiError> {
        let work = move |gateway: &Self| {
            gateway.check_messages(&messages)?;
            Ok(gateway.opened.model.encode_chat_with(&messages, tools.as_ref(), &values)?)
        };
        self.prepare(Turn::First, work).await
    }

    /// The tokens of a text that stands alone, on the thread that asks.
    pub(super) fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        self.check_bytes("prompt", text.len())?;
        Ok(self.opened.model.encode(text)?)
    }

    /// The tokens of a text in the middle of another.
    pub(super) async fn encode_plain(self: &Arc<Self>, text: String) -> Result<Vec<u32>, ApiError> {
        let work = move |gateway: &Self| {
            gateway.check_bytes("prediction", text.len())?;
            match gateway.tokenizer() {
                Some(tokenizer) => {
                    let encoded = tokenizer.encode(&text, false);
                    encoded.map_err(|error| ApiError::invalid("prediction", error.to_string()))
                }
                None => Ok(Vec::new()),
            }
        };
        self.prepare(Turn::First, work).await
    }

    /// The text of tokens, as many as there is room for.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, ApiError> {
        let (tokens, context) = (ids.len(), self.context());
        if tokens > context {
            return Err(GenerateError::PromptTooLong { tokens, context }.into());
        }
        let vocabulary = self.opened.model.config().vocabulary_size;
        if let Some(&id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(GenerateError::UnknownToken { id, vocabulary }.into());
        }
        let text = self.tokenizer().map(|tokenizer| tokenizer.decode(ids));
        text.transpose()
            .map_err(|error| ApiError::invalid("prompt", error.to_string()))
            .map(|text| text.unwrap_or_default())
    }

    fn check_messages(&self, messages: &[Message]) -> Result<(), ApiError> {
        let said = messages.iter().map(|message| message.content.len());
        self.check_bytes("messages", said.sum())
    }

    /// Refuses a text of `param` that would not fit if all its tokens were the longest one.
    fn check_bytes(&self, param: &str, bytes: usize) -> Result<(), ApiError> {
        let longest = *self.longest_token.get_or_init(|| self.longest_token());
        let context = self.context();
        // Of some tokenizers it is not known which bytes a token stands for.
        if longest > 0 && bytes > context.saturating_mul(longest) {
            return Err(ApiError::too_long(param, bytes, context));
        }
        Ok(())
    }

    fn longest_token(&self) -> usize {
        let vocabulary = self.opened.model.config().vocabulary_size;
        let ids = 0..u32::try_from(vocabulary).unwrap_or(u32::MAX);
        let longest = |tokenizer: &Tokenizer| ids.map(|id| tokenizer.bytes(id).len()).max();
        self.tokenizer().and_then(longest).unwrap_or(0)
    }
}
