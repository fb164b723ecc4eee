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

/// What a kind of request makes of the events of its answers.
pub(super) trait Chunks: Send + 'static {
    /// What is sent before the first token.
    fn begin(&mut self) -> Vec<Value>;
    /// What is sent for an event.
    fn event(&mut self, event: Event) -> Vec<Value>;
    /// What is sent when all answers are over.
    fn end(&mut self) -> Vec<Value>;
}

/// Sends what `chunks` makes of the answers, and `[DONE]` behind it. An error is the last event.
pub(super) fn respond(answers: Answers, mut chunks: impl Chunks) -> Response {
    let first = chunks.begin().iter().map(data).collect::<Vec<_>>();
    let state = Some((answers, chunks));
    let rest = stream::unfold(state, |state| async {
        let (mut answers, mut chunks) = state?;
        Some(match answers.next().await {
            Some(Ok(event)) => {
                let sent: Vec<_> = chunks.event(event).iter().map(data).collect();
                (sent, Some((answers, chunks)))
            }
            Some(Err(error)) => (vec![failure(&error)], None),
            None => {
                let mut sent: Vec<_> = chunks.end().iter().map(data).collect();
                sent.push(Sent::default().data("[DONE]"));
                (sent, None)
            }
        })
    });
    let sent = stream::once(std::future::ready(first)).chain(rest);
    let sent = sent.flat_map(|events| stream::iter(events.into_iter().map(Ok::<_, Infallible>)));
    Sse::new(sent).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

fn data(chunk: &Value) -> Sent {
    Sent::default().data(chunk.to_string())
}

fn failure(error: &ApiError) -> Sent {
    data(&error.to_json())
}
