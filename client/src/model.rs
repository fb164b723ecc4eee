//! What the client keeps of a model: its two ends, its tokenizer, its chat template.

mod head;

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use tracing::warn;
use umbel_engine::{Arithmetic, Ends, EndsError, HiddenStates};
use umbel_protocol::ModelId;
use umbel_protocol::error::in_one_line;
use umbel_shard::{
    Cache, LoadError, Model, ModelConfig, ModelSource, OpenModelError, Part, PartsNeeded, Progress,
};

use crate::text::chat_template::{
    ChatTemplate, Conversation, InvalidChatTemplate, InvalidTool, Message, RenderChatError,
    TemplateValues, Tool,
};
use crate::text::grammar::{GrammarError, Grammars};
use crate::text::tokenizer::{EncodeError, LoadTokenizerError, Tokenizer};
use crate::text::tools::Tools;
use head::Head;

/// The client's part of a model.
pub struct ClientModel {
    shard: Model,
    /// Absent where servers embed and draw.
    head: Option<Arc<Head>>,
    tokenizer: Option<Tokenizer>,
    templates: Option<Templates>,
    /// Made when the first answer is held to a form: it takes a moment and some megabytes.
    grammars: OnceLock<Result<Grammars, GrammarError>>,
}

impl ClientModel {
    /// Opens the ends of a model, fetching what is missing.
    ///
    /// # Errors
    /// [`OpenClientModelError`] where the model cannot be had or its files are malformed.
    pub fn open(
        source: &ModelSource,
        cache: &Cache,
        progress: &dyn Progress,
    ) -> Result<Self, OpenClientModelError> {
        Self::from_shard(Model::open(source, cache, PartsNeeded::ends(), progress)?)
    }

    /// Opens what a thin session needs of a model: its configuration, tokenizer and chat template. No
    /// weights are mapped, nor fetched where they are in files of their own.
    ///
    /// # Errors
    /// [`OpenClientModelError`] where these cannot be had or are malformed.
    pub fn open_thin(
        source: &ModelSource,
        cache: &Cache,
        progress: &dyn Progress,
    ) -> Result<Self, OpenClientModelError> {
        let parts = PartsNeeded { tokenizer: true, ..PartsNeeded::nothing() };
        Self::without_head(Model::open(source, cache, parts, progress)?)
    }

    /// Takes the ends of a model that is open already.
    ///
    /// # Errors
    /// [`OpenClientModelError`] where its files are malformed.
    pub fn from_shard(shard: Model) -> Result<Self, OpenClientModelError> {
        Self::from_shard_with(Arithmetic::default(), shard)
    }

    /// The same, with activations multiplied as `arithmetic` says.
    ///
    /// # Errors
    /// As [`ClientModel::from_shard`].
    pub fn from_shard_with(
        arithmetic: Arithmetic,
        shard: Model,
    ) -> Result<Self, OpenClientModelError> {
        let weights = shard.weights(Part::Embedding)?.and(shard.weights(Part::Head)?);
        let ends = Ends::load_with(arithmetic, shard.config(), &weights)?;
        let head = Some(Arc::new(Head::new(ends)));
        Ok(Self { head, ..Self::without_head(shard)? })
    }

    fn without_head(shard: Model) -> Result<Self, OpenClientModelError> {
        let tokenizer = shard.tokenizer().map(Tokenizer::load).transpose()?;
        let templates = match shard.chat_template() {
            Some(source) => Some(Templates {
                plain: ChatTemplate::new(source, shard.special_tokens())?,
                with_tools: with_tools(&shard),
            }),
            None => None,
        };
        Ok(Self { head: None, tokenizer, templates, shard, grammars: OnceLock::new() })
    }

    /// The hash of its manifest, by which servers of the same model are found.
    #[must_use]
    pub fn id(&self) -> ModelId {
        self.shard.id()
    }

    /// Its configuration.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        self.shard.config()
    }

    /// Its files, of which other parts may be loaded.
    #[must_use]
    pub const fn shard(&self) -> &Model {
        &self.shard
    }

    /// Whether embedding, final norm and head are here.
    #[must_use]
    pub const fn has_weights(&self) -> bool {
        self.head.is_some()
    }

    /// Embedding, final norm and head.
    ///
    /// # Panics
    /// Of a model that was opened without weights.
    #[must_use]
    pub fn ends(&self) -> &Ends {
        self.head().ends()
    }

    fn head(&self) -> &Arc<Head> {
        self.head.as_ref().expect("the model was opened with its weights")
    }

    /// A logit for each token of the vocabulary, for each token of `hidden`, which left the last
    /// block. What sessions ask for at the same time is computed together, apart from the network.
    ///
    /// # Errors
    /// [`EndsError`] where `hidden` is of another model.
    ///
    /// # Panics
    /// Of a model that was opened without weights.
    pub async fn logits(&self, hidden: HiddenStates) -> Result<Vec<Vec<f32>>, EndsError> {
        self.head().logits(hidden).await
    }

    /// The tokenizer, if the model has one.
    #[must_use]
    pub const fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The chat template, if the model has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.templates.as_ref().map(|templates| &templates.plain)
    }

    /// The forms that answers can be held to. The first call takes a moment: call it apart from the
    /// network.
    ///
    /// # Errors
    /// [`GrammarError`] where the model has no tokenizer, or none of its tokens ends an answer.
    pub fn grammars(&self) -> Result<&Grammars, GrammarError> {
        let make = || {
            let tokenizer = self.tokenizer.as_ref().ok_or(GrammarError::Vocabulary)?;
            let config = self.config();
            Grammars::new(tokenizer, config.vocabulary_size, &config.eos_token_ids)
        };
        self.grammars.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// The token ids of a text, with the special tokens that the model puts around it.
    ///
    /// # Errors
    /// [`PromptError`] where the model has no tokenizer.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(PromptError::NoTokenizer)?;
        Ok(tokenizer.encode_prompt(text)?)
    }

    /// The token ids of a conversation, up to where the model's answer begins.
    ///
    /// # Errors
    /// [`PromptError`] where the model has no tokenizer or chat template, or the template refuses.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, PromptError> {
        self.encode_conversation(messages, None, &TemplateValues::default(), false)
    }

    /// The same where the model may ask for functions, or its template is told more.
    ///
    /// # Errors
    /// As [`ClientModel::encode_chat`].
    pub fn encode_chat_with(
        &self,
        messages: &[Message],
        tools: Option<&Tools>,
        values: &TemplateValues,
    ) -> Result<Vec<u32>, PromptError> {
        self.encode_conversation(messages, tools, values, false)
    }

    /// The token ids of a conversation whose last message is the beginning of the model's answer.
    ///
    /// # Errors
    /// As [`ClientModel::encode_chat`], and where the template does not show this message.
    pub fn encode_begun(
        &self,
        messages: &[Message],
        tools: Option<&Tools>,
    ) -> Result<Vec<u32>, PromptError> {
        self.encode_conversation(messages, tools, &TemplateValues::default(), true)
    }

    fn encode_conversation(
        &self,
        messages: &[Message],
        tools: Option<&Tools>,
        values: &TemplateValues,
        is_begun: bool,
    ) -> Result<Vec<u32>, PromptError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(PromptError::NoTokenizer)?;
        let templates = self.templates.as_ref().ok_or(PromptError::NoChatTemplate)?;
        Ok(tokenizer.encode_chat(&told(templates, messages, tools, values, is_begun)?)?)
    }
}

/// The chat templates of a model.
struct Templates {
    plain: ChatTemplate,
    /// For conversations with functions, where that is another one.
    with_tools: Option<ChatTemplate>,
}

/// The template for conversations with functions. Others have no need of it, so that a broken one is no
/// reason not to open the model.
fn with_tools(shard: &Model) -> Option<ChatTemplate> {
    match ChatTemplate::new(shard.tool_template()?, shard.special_tokens()) {
        Ok(template) => Some(template),
        Err(error) => {
            warn!(error = in_one_line(&error), "the model's template for functions cannot be used");
            None
        }
    }
}

/// A conversation as the model is told it. Where the template knows nothing of functions, these, calls
/// and results are text, also where a conversation that had functions goes on without.
fn told(
    templates: &Templates,
    messages: &[Message],
    tools: Option<&Tools>,
    values: &TemplateValues,
    is_begun: bool,
) -> Result<String, PromptError> {
    let template = tools.and(templates.with_tools.as_ref()).unwrap_or(&templates.plain);
    let mut messages = Cow::Borrowed(messages);
    let mut described = Vec::new();
    if template.takes_tools() {
        let tools = tools.into_iter().flat_map(Tools::described);
        described =
            tools.map(|tool| Tool::from_json(&tool.to_string())).collect::<Result<_, _>>()?;
    } else {
        messages = Tools::as_text(tools, &messages).into();
    }
    let conversation = Conversation {
        messages: &messages,
        tools: &described,
        add_generation_prompt: !is_begun,
        values,
        now: SystemTime::now(),
    };
    let text = if is_begun {
        template.render_begun(conversation)
    } else {
        template.render_conversation(conversation)
    };
    Ok(text?)
}

/// A prompt that cannot become tokens.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The model's files hold none.
    #[error("the model has no tokenizer: give token ids with --prompt-ids")]
    NoTokenizer,
    /// The model's files hold none.
    #[error("the model has no chat template: use `umbel generate --prompt` to continue a text")]
    NoChatTemplate,
    /// The tokenizer failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The template failed.
    #[error(transparent)]
    Render(#[from] RenderChatError),
    /// A function cannot be described.
    #[error(transparent)]
    Tool(#[from] InvalidTool),
}

/// The client's part of a model that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenClientModelError {
    /// Its files cannot be found, fetched or understood.
    #[error(transparent)]
    Model(#[from] OpenModelError),
    /// A tensor could not be read.
    #[error(transparent)]
    Weights(#[from] LoadError),
    /// Embedding, norm or head is missing or has the wrong shape.
    #[error(transparent)]
    Ends(#[from] umbel_engine::LoadTensorError),
    /// The tokenizer is malformed.
    #[error(transparent)]
    Tokenizer(#[from] LoadTokenizerError),
    /// The chat template is malformed.
    #[error(transparent)]
    ChatTemplate(#[from] InvalidChatTemplate),
}

#[cfg(test)]
mod tests;
