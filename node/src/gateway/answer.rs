//! Answers under way: each is a task that ends when nobody reads it any more, and its session with it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use umbel_client::{FinishReason, Generate, Generation, Token};

use super::error::ApiError;
use super::keys::{Holder, Taken};
use super::{Asked, Gateway, Turn};

/// Tokens that wait for a client that reads slowly.
const TOKENS_WAITING_MAX: usize = 256;

/// How long a client may leave them unread before its answer is given up.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(60);

/// What comes of the answers to a request.
#[derive(Debug)]
pub(super) enum Event {
    /// One more token of an answer.
    Token {
        /// Which of them.
        answer: usize,
        /// The token.
        token: Box<Token>,
    },
    /// An answer is over.
    Finished {
        /// Which of them.
        answer: usize,
        /// Why.
        reason: FinishReason,
        /// The text at which it ended, where it was one that the request names.
        stopped_at: Option<String>,
    },
}

/// The answers to a request.
#[derive(Debug)]
pub(super) struct Answers {
    events: mpsc::Receiver<Result<Event, ApiError>>,
}

impl Answers {
    /// Waits for a turn, opens a session for the first answer and begins; the others follow when
    /// their turns come. The tokens of the prompts are spent unless it fails.
    ///
    /// # Errors
    /// [`ApiError`] where too many wait, or the swarm opens no session.
    pub(super) async fn begin(
        gateway: &Arc<Gateway>,
        holder: &Arc<Holder>,
        (asked, requests): (&Asked, Vec<Generate>),
        prompt_tokens: usize,
    ) -> Result<Self, ApiError> {
        let taken = Taken::from(holder, prompt_tokens);
        let (tell, events) = mpsc::channel(TOKENS_WAITING_MAX);
        // Before it has a turn: one that is fetched may take long, and others shall not wait for it.
        let adapter = gateway.adapter(asked).await?;
        let mut requests = requests.into_iter().enumerate();
        if let Some((answer, request)) = requests.next() {
            let turn = gateway.admission.turn().await?;
            let generation = gateway.start(request, adapter.as_ref(), Turn::First).await?;
            taken.keep();
            let (gateway, holder, tell) = (Arc::clone(gateway), Arc::clone(holder), tell.clone());
            tokio::spawn(
                async move { run(&gateway, answer, generation, (turn, holder), tell).await },
            );
        }
        for (answer, request) in requests {
            let (gateway, holder) = (Arc::clone(gateway), Arc::clone(holder));
            let (tell, adapter) = (tell.clone(), adapter.clone());
            tokio::spawn(async move {
                let beginning = async {
                    let turn = gateway.admission.further_turn().await;
                    let generation =
                        gateway.start(request, adapter.as_ref(), Turn::Further).await?;
                    Ok((generation, turn))
                };
                let begun = tokio::select! {
                    begun = beginning => begun,
                    () = tell.closed() => return,
                };
                match begun {
                    Ok((generation, turn)) => {
                        run(&gateway, answer, generation, (turn, holder), tell).await;
                    }
                    // Where nobody reads any more, nobody need know.
                    Err(error) => drop(tell.send(Err(error)).await),
                }
            });
        }
        Ok(Self { events })
    }

    /// What comes next; `None` when all answers are over.
    pub(super) async fn next(&mut self) -> Option<Result<Event, ApiError>> {
        self.events.recv().await
    }
}

/// Generates as long as somebody reads. Dropping a generation ends its session.
async fn run(
    gateway: &Gateway,
    answer: usize,
    mut generation: Generation,
    (_turn, holder): (OwnedSemaphorePermit, Arc<Holder>),
    tell: mpsc::Sender<Result<Event, ApiError>>,
) {
    let mut counted = gateway.counters.answer(generation.tokens().len());
    loop {
        let next = tokio::select! {
            next = generation.next() => next,
            () = tell.closed() => return,
        };
        let (event, over) = match next {
            Ok(Some(token)) => {
                holder.spend(1);
                counted.token();
                (Ok(Event::Token { answer, token: Box::new(token) }), false)
            }
            Ok(None) => {
                let reason = generation.finish_reason().unwrap_or(FinishReason::Stop);
                let stopped_at = generation.stopped_at().map(str::to_owned);
                (Ok(Event::Finished { answer, reason, stopped_at }), true)
            }
            Err(error) => {
                tracing::warn!(%error, "an answer ended too early");
                counted.failed();
                (Err(ApiError::from(error)), true)
            }
        };
        if !matches!(timeout(UNREAD_TIMEOUT, tell.send(event)).await, Ok(Ok(()))) {
            return;
        }
        if over {
            // Servers free its room before the next one asks for it.
            return generation.into_chain().0.close().await;
        }
    }
}
