//! `umbel chat`

mod line;
mod lines;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use umbel_client::text::chat_template::{Message, TemplateValues};
use umbel_client::{Chain, Generate, NamedAdapter, Sampling, Speculate};

use super::session::{Opened, sampling};
use super::{adapter, speculate};
use crate::args::ChatArguments;
use crate::config::Config;
use crate::telemetry::{report, say};
use line::{HELP, Line};
use lines::Lines;

/// How an answer is drawn unless something else is asked for: what the authors of the default
/// model advise.
pub(super) const SAMPLING: Sampling =
    Sampling { temperature: 0.2, top_p: 0.9, ..Sampling::greedy() };

/// The file in the user's data folder that holds what was typed.
const HISTORY: &str = "chat-history";

/// Tokens of a conversation for which servers keep room from its first word; it can grow beyond.
const CONVERSATION_TOKENS: usize = 2048;

pub(super) async fn run(arguments: ChatArguments, config: &Config) -> anyhow::Result<()> {
    let opened = Opened::open(arguments.model.name(), &arguments.chain, config).await?;
    let sampling = sampling(&arguments.sampling, SAMPLING)?;
    let speculate = speculate::open(&arguments.speculate, &opened.model, config).await?;
    let adapter = match &arguments.adapter {
        Some(named) => Some(adapter::named(&opened, named, config).await?),
        None => None,
    };
    let mut conversation =
        Conversation::new(&opened, sampling, arguments.max_tokens, arguments.system)?;
    (conversation.speculate, conversation.adapter) = (speculate, adapter);
    if arguments.no_thinking {
        conversation.values = TemplateValues::without_thinking();
    }
    conversation.history = (!arguments.no_history).then(|| config.data_dir.join(HISTORY));
    let conversed = conversation.converse().await;
    conversation.close().await;
    opened.leave().await;
    conversed
}

/// Nobody reads what is answered, nor would anybody read the next answer.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
struct StdoutClosed(#[source] io::Error);

/// What has been said, and the chain whose cache holds it.
pub(super) struct Conversation<'a> {
    opened: &'a Opened,
    sampling: Sampling,
    max_tokens: u32,
    /// How tokens are guessed.
    speculate: Speculate,
    /// What is added to the model.
    adapter: Option<NamedAdapter>,
    /// Where what is typed is kept, if it is.
    history: Option<PathBuf>,
    /// What the chat template is told beside the messages.
    values: TemplateValues,
    messages: Vec<Message>,
    chain: Option<(Chain, Vec<u32>)>,
}

impl<'a> Conversation<'a> {
    /// # Errors
    /// Where the model knows no text.
    pub(super) fn new(
        opened: &'a Opened,
        sampling: Sampling,
        max_tokens: u32,
        system: Option<String>,
    ) -> anyhow::Result<Self> {
        if opened.model.tokenizer().is_none() {
            bail!(
                "the model has no tokenizer, without which there is no chat: `umbel generate \
                 --prompt-ids` takes token ids"
            );
        }
        let messages = system.map(Message::system).into_iter().collect();
        Ok(Self {
            opened,
            sampling,
            max_tokens,
            speculate: Speculate::Auto,
            adapter: None,
            history: None,
            values: TemplateValues::default(),
            messages,
            chain: None,
        })
    }

    /// Reads lines and does what they ask for, until the end of the input.
    ///
    /// # Errors
    /// Also where answers have failed of which no person saw that.
    pub(super) async fn converse(&mut self) -> anyhow::Result<()> {
        let lines = Lines::open(self.history.clone())?;
        let is_pipe = matches!(lines, Lines::Pipe);
        let failed = self.answer_all(lines).await?;
        if is_pipe && failed > 0 {
            bail!("questions without an answer: {failed}");
        }
        Ok(())
    }

    /// How many questions could not be answered.
    async fn answer_all(&mut self, mut lines: Lines) -> anyhow::Result<usize> {
        let mut failed = 0;
        loop {
            let asking = tokio::task::spawn_blocking(move || {
                let line = lines.next();
                (lines, line)
            });
            let (returned, line) = tokio::select! {
                asked = asking => asked?,
                // At a terminal the editor reads Ctrl-C as a key, so this comes from elsewhere.
                _ = tokio::signal::ctrl_c() => return Ok(failed),
            };
            lines = returned;
            let Some(line) = line? else {
                return Ok(failed);
            };
            match line {
                Line::Empty => {}
                Line::Question(question) => {
                    if let Err(error) = self.answer(&question).await {
                        if error.is::<StdoutClosed>() {
                            return Err(error);
                        }
                        // The conversation goes on: the next answer finds another route.
                        failed += 1;
                        report(&error);
                        self.messages.pop();
                        self.chain = None;
                    }
                }
                Line::Help => say(HELP),
                Line::New => self.begin_anew(),
                Line::System(text) => {
                    self.messages = text.map(Message::system).into_iter().collect();
                    self.begin_anew();
                }
                Line::Save(file) => match save(&self.messages, &file) {
                    Ok(()) => say(format_args!("({} is written)", file.display())),
                    Err(error) => report(&error),
                },
                Line::Quit => return Ok(failed),
                Line::Wrong(why) => say(format_args!("({why})")),
            }
        }
    }

    /// Forgets all but what the model was told. What the cache holds of it serves the next answer.
    fn begin_anew(&mut self) {
        self.messages.retain(|message| message.role == "system");
        say("(a new conversation)");
    }

    /// Prints the answer to a question as it comes. Ctrl-C ends the answer, not the program.
    pub(super) async fn answer(&mut self, question: &str) -> anyhow::Result<()> {
        self.messages.push(Message::user(question));
        // From here on, so that one that comes while a route is looked for counts too.
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let prompt = self.opened.model.encode_chat_with(&self.messages, None, &self.values)?;
        let (chain, cached) = tokio::select! {
            chain = self.chain_for(&prompt) => chain?,
            _ = &mut interrupt => {
                self.messages.pop();
                return Ok(());
            }
        };
        let request = Generate {
            continues: false,
            max_tokens: self.max_tokens,
            sampling: self.sampling.clone(),
            speculate: self.speculate.clone(),
            ..Generate::new(prompt)
        };
        let mut generation = request.resume(self.opened.model.clone(), chain, &cached)?;
        let mut out = std::io::stdout();
        let mut answer = String::new();
        let mut interrupted = false;
        loop {
            tokio::select! {
                token = generation.next() => {
                    let Some(token) = token? else { break };
                    answer.push_str(&token.text);
                    write!(out, "{}", token.text)
                        .and_then(|()| out.flush())
                        .map_err(StdoutClosed)?;
                }
                _ = &mut interrupt => {
                    interrupted = true;
                    break;
                }
            }
        }
        writeln!(out).map_err(StdoutClosed)?;
        if interrupted && answer.is_empty() {
            self.messages.pop();
        } else {
            self.messages.push(Message::assistant(answer));
        }
        // A step that was interrupted leaves the cache in doubt: the next answer fills a new one.
        if !interrupted {
            self.chain = Some(generation.into_chain());
        }
        Ok(())
    }

    /// The chain of the last answer, or one with more room where the conversation has outgrown it.
    async fn chain_for(&mut self, prompt: &[u32]) -> anyhow::Result<(Chain, Vec<u32>)> {
        let context = self.opened.model.config().context_tokens;
        let needed = (prompt.len() + self.max_tokens as usize).min(context);
        if let Some((chain, cached)) = self.chain.take() {
            if chain.tokens_max() as usize >= needed {
                return Ok((chain, cached));
            }
            chain.close().await;
        }
        let room = needed.next_power_of_two().max(CONVERSATION_TOKENS);
        let chain = self.opened.chain_with(self.adapter.as_ref(), room, prompt).await?;
        let held = chain.held().to_vec();
        Ok((chain, held))
    }

    pub(super) async fn close(self) {
        if let Some((chain, _)) = self.chain {
            chain.close().await;
        }
    }
}

/// Writes a conversation as a line of JSON to a file that is not there yet.
fn save(messages: &[Message], file: &Path) -> anyhow::Result<()> {
    let said: Vec<Value> = messages
        .iter()
        .map(|message| json!({ "role": message.role, "content": message.content }))
        .collect();
    let written = File::create_new(file)
        .and_then(|mut opened| writeln!(opened, "{}", json!({ "messages": said })));
    written.with_context(|| format!("{} cannot be written: name another file", file.display()))
}
