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
    /// How many have not come to their end.
    under_way: usize,
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
        let under_way = requests.len();
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
        Ok(Self { events, under_way })
    }

    /// What comes next; `None` when all answers are over. One that was given up is an error.
    pub(super) async fn next(&mut self) -> Option<Result<Event, ApiError>> {
        let next = self.events.recv().await;
        match &next {
            Some(Ok(Event::Token { .. })) => {}
            Some(Ok(Event::Finished { .. }) | Err(_)) => self.under_way -= 1,
            None if self.under_way > 0 => {
                self.under_way = 0;
                return Some(Err(ApiError::unread()));
            }
            None => {}
        }
        next
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

#[cfg(test)]
mod tests {
    use umbel_client::StepTime;

    use super::*;

    fn token(answer: usize) -> Event {
        let (text, top_logits, time) = (String::new(), Vec::new(), StepTime::default());
        let token = Token { id: 1, text, top_logits, logprobs: None, time };
        Event::Token { answer, token: Box::new(token) }
    }

    fn finished(answer: usize) -> Event {
        Event::Finished { answer, reason: FinishReason::Stop, stopped_at: None }
    }

    /// Two answers of which this has come, and no more will.
    async fn two(come: impl IntoIterator<Item = Event>) -> Answers {
        let (tell, events) = mpsc::channel(TOKENS_WAITING_MAX);
        for event in come {
            tell.send(Ok(event)).await.unwrap();
        }
        Answers { events, under_way: 2 }
    }

    #[tokio::test]
    async fn an_answer_that_is_given_up_has_failed() {
        let mut answers = two([token(0), finished(0), token(1)]).await;
        for _ in 0..3 {
            assert!(matches!(answers.next().await, Some(Ok(_))));
        }
        let failure = answers.next().await.expect("one has no end").unwrap_err();
        let failure = failure.to_json()["error"]["message"].to_string();
        assert!(failure.contains("not read"), "{failure}");
        assert!(answers.next().await.is_none());
    }

    #[tokio::test]
    async fn answers_that_have_ended_have_not_failed() {
        let mut answers = two([finished(1), token(0), finished(0)]).await;
        for _ in 0..3 {
            assert!(matches!(answers.next().await, Some(Ok(_))));
        }
        assert!(answers.next().await.is_none());
    }
}
