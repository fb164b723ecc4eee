//! `umbel chat`

use std::io::{IsTerminal as _, Write as _, stdin};

use anyhow::Context as _;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use umbel_client::text::chat_template::Message;
use umbel_client::{Chain, Generate, Sampling, Speculate};

use super::session::{Opened, sampling};
use super::speculate;
use crate::args::ChatArguments;
use crate::config::Config;

/// How an answer is drawn unless something else is asked for: what the authors of the default
/// model advise.
pub(super) const SAMPLING: Sampling =
    Sampling { temperature: 0.2, top_p: 0.9, ..Sampling::greedy() };

/// Tokens of a conversation for which servers keep room from its first word; it can grow beyond.
const CONVERSATION_TOKENS: usize = 2048;

pub(super) async fn run(arguments: ChatArguments, config: &Config) -> anyhow::Result<()> {
    let opened = Opened::open(arguments.model.name(), &arguments.chain, config).await?;
    let sampling = sampling(&arguments.sampling, SAMPLING)?;
    let speculate = speculate::open(&arguments.speculate, &opened.model, config).await?;
    let mut conversation =
        Conversation::new(&opened, sampling, arguments.max_tokens, arguments.system);
    conversation.speculate = speculate;
    conversation.converse().await?;
    conversation.close().await;
    opened.leave().await;
    Ok(())
}

/// What has been said, and the chain whose cache holds it.
pub(super) struct Conversation<'a> {
    opened: &'a Opened,
    sampling: Sampling,
    max_tokens: u32,
    /// How tokens are guessed.
    speculate: Speculate,
    messages: Vec<Message>,
    chain: Option<(Chain, Vec<u32>)>,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        opened: &'a Opened,
        sampling: Sampling,
        max_tokens: u32,
        system: Option<String>,
    ) -> Self {
        let messages = system.map(Message::system).into_iter().collect();
        Self { opened, sampling, max_tokens, speculate: Speculate::Auto, messages, chain: None }
    }

    /// Reads questions and prints answers, until the end of the input.
    pub(super) async fn converse(&mut self) -> anyhow::Result<()> {
        let mut questions = Questions::open()?;
        loop {
            let asking = tokio::task::spawn_blocking(move || {
                let question = questions.next();
                (questions, question)
            });
            let (returned, question) = tokio::select! {
                asked = asking => asked?,
                // At a terminal the editor reads Ctrl-C as a key, so this comes from elsewhere.
                _ = tokio::signal::ctrl_c() => return Ok(()),
            };
            questions = returned;
            let Some(question) = question? else {
                return Ok(());
            };
            if question.trim().is_empty() {
                continue;
            }
            if let Err(error) = self.answer(&question).await {
                // The conversation goes on: the next answer finds another route.
                crate::telemetry::report(&error);
                self.messages.pop();
                self.chain = None;
            }
        }
    }

    /// Prints the answer to a question as it comes. Ctrl-C ends the answer, not the program.
    pub(super) async fn answer(&mut self, question: &str) -> anyhow::Result<()> {
        self.messages.push(Message::user(question));
        let prompt = self.opened.model.encode_chat(&self.messages)?;
        let (chain, cached) = self.chain_for(&prompt).await?;
        let request = Generate {
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
                        .context("stdout is closed")?;
                }
                _ = tokio::signal::ctrl_c() => {
                    interrupted = true;
                    break;
                }
            }
        }
        writeln!(out).context("stdout is closed")?;
        self.messages.push(Message::assistant(answer));
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
        let chain = self.opened.chain(room, prompt).await?;
        let held = chain.held().to_vec();
        Ok((chain, held))
    }

    pub(super) async fn close(self) {
        if let Some((chain, _)) = self.chain {
            chain.close().await;
        }
    }
}

/// Where questions come from: a person at a terminal, or lines of a pipe.
enum Questions {
    Terminal(Box<DefaultEditor>),
    Pipe,
}

impl Questions {
    fn open() -> anyhow::Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        eprintln!("Ask away. Ctrl-C stops an answer, Ctrl-D ends the chat.");
        Ok(Self::Terminal(Box::new(DefaultEditor::new().context("the terminal cannot be read")?)))
    }

    /// The next question; `None` at the end.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Terminal(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        editor.add_history_entry(line.as_str())?;
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => eprintln!("(Ctrl-D ends the chat)"),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("the terminal cannot be read"),
                }
            },
            Self::Pipe => {
                let mut line = String::new();
                let read = stdin().read_line(&mut line).context("stdin cannot be read")?;
                Ok((read > 0).then_some(line))
            }
        }
    }
}
