//! Server-sent events: a token at a time, and at the end what it cost.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt as _};
use serde_json::Value;

use super::answer::{Answers, Event};
use super::error::ApiError;

/// A line without meaning after so long without a token, for what stands between and closes
/// connections that are silent.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// One event, with a name where the interface has names.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) name: Option<&'static str>,
    pub(super) data: Value,
}

impl From<Value> for Chunk {
    fn from(data: Value) -> Self {
        Self { name: None, data }
    }
}

/// What a kind of request makes of the events of its answers.
pub(super) trait Chunks: Send + 'static {
    /// What stands behind the last event.
    const LAST: Option<&'static str> = Some("[DONE]");

    /// What is sent before the first token.
    fn begin(&mut self) -> Vec<Chunk>;
    /// What is sent for an event.
    fn event(&mut self, event: Event) -> Vec<Chunk>;
    /// What is sent when all answers are over.
    fn end(&mut self) -> Vec<Chunk>;
    /// What is sent, and nothing after it, where the answers end too early.
    fn failure(error: &ApiError) -> Chunk {
        error.to_json().into()
    }
}

/// Sends what `chunks` makes of the answers.
pub(super) fn respond<C: Chunks>(answers: Answers, mut chunks: C) -> Response {
    let first: Vec<_> = chunks.begin().into_iter().map(sent).collect();
    let state = Some((answers, chunks));
    let rest = stream::unfold(state, |state| async {
        let (mut answers, mut chunks) = state?;
        Some(match answers.next().await {
            Some(Ok(event)) => {
                let events: Vec<_> = chunks.event(event).into_iter().map(sent).collect();
                (events, Some((answers, chunks)))
            }
            Some(Err(error)) => (vec![sent(C::failure(&error))], None),
            None => {
                let mut events: Vec<_> = chunks.end().into_iter().map(sent).collect();
                events.extend(C::LAST.map(|last| Sent::default().data(last)));
                (events, None)
            }
        })
    });
    let events = stream::once(std::future::ready(first)).chain(rest);
    let events = events.flat_map(|some| stream::iter(some.into_iter().map(Ok::<_, Infallible>)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

fn sent(chunk: Chunk) -> Sent {
    let event = Sent::default().data(chunk.data.to_string());
    match chunk.name {
        Some(name) => event.event(name),
        None => event,
    }
}
