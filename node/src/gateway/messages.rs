//! `POST /v1/messages`: Anthropic's interface.

mod request;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use umbel_client::FinishReason;

use super::answer::{Answers, Event};
use super::error::{ApiError, MessagesError};
use super::events::{self, Chunk, Chunks};
use super::keys::Holder;
use super::usage::Usage;
use super::{Gateway, body, reply};
use request::MessagesRequest;

pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    body: Body,
) -> Result<Response, MessagesError> {
    let request: MessagesRequest = body::json(body).await?;
    gateway.check_model(&request.model)?;
    let mut options = request.options()?;
    if let Some(format) = request.format() {
        options.grammar = gateway.grammar(format).await?;
    }
    let prompt = gateway.encode_chat(request.messages()?, None).await?;
    let requests = options.requests(&gateway, &prompt)?;
    let id = reply::id("msg_");
    let usage = Usage { prompt: prompt.len(), completion: 0 };
    holder.spend(prompt.len());
    let answers = Answers::begin(&gateway, &holder, requests).await?;
    let model = gateway.model_name().to_owned();
    let message = Message { id, model, usage, stop: None };
    if options.stream {
        return Ok(events::respond(answers, message));
    }
    Ok(whole(message, answers).await?)
}

/// An answer, as it grows.
struct Message {
    id: String,
    model: String,
    usage: Usage,
    stop: Option<(FinishReason, Option<String>)>,
}

impl Message {
    fn to_json(&self, content: &Value) -> Value {
        let (reason, sequence) = self.stop();
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": {
                "input_tokens": self.usage.prompt,
                "output_tokens": self.usage.completion,
            },
        })
    }

    fn stop(&self) -> (Option<&'static str>, Option<&str>) {
        match &self.stop {
            None => (None, None),
            Some((FinishReason::Length, _)) => (Some("max_tokens"), None),
            Some((FinishReason::Stop, None)) => (Some("end_turn"), None),
            Some((FinishReason::Stop, Some(text))) => (Some("stop_sequence"), Some(text)),
        }
    }
}

async fn whole(mut message: Message, mut answers: Answers) -> Result<Response, ApiError> {
    let mut text = String::new();
    while let Some(event) = answers.next().await {
        match event? {
            Event::Token { token, .. } => {
                message.usage.completion += 1;
                text.push_str(&token.text);
            }
            Event::Finished { reason, stopped_at, .. } => {
                message.stop = Some((reason, stopped_at));
            }
        }
    }
    let content = json!([{ "type": "text", "text": text }]);
    Ok(Json(message.to_json(&content)).into_response())
}

/// An event, whose data repeats its name.
fn chunk(name: &'static str, mut data: Value) -> Chunk {
    data["type"] = name.into();
    Chunk { name: Some(name), data }
}

impl Chunks for Message {
    const LAST: Option<&'static str> = None;

    fn begin(&mut self) -> Vec<Chunk> {
        let block = json!({ "index": 0, "content_block": { "type": "text", "text": "" } });
        vec![
            chunk("message_start", json!({ "message": self.to_json(&json!([])) })),
            chunk("content_block_start", block),
        ]
    }

    fn event(&mut self, event: Event) -> Vec<Chunk> {
        match event {
            Event::Token { token, .. } => {
                self.usage.completion += 1;
                if token.text.is_empty() {
                    return Vec::new();
                }
                let delta = json!({ "type": "text_delta", "text": token.text });
                vec![chunk("content_block_delta", json!({ "index": 0, "delta": delta }))]
            }
            Event::Finished { reason, stopped_at, .. } => {
                self.stop = Some((reason, stopped_at));
                Vec::new()
            }
        }
    }

    fn end(&mut self) -> Vec<Chunk> {
        let (reason, sequence) = self.stop();
        let delta = json!({
            "delta": { "stop_reason": reason, "stop_sequence": sequence },
            "usage": { "output_tokens": self.usage.completion },
        });
        vec![
            chunk("content_block_stop", json!({ "index": 0 })),
            chunk("message_delta", delta),
            chunk("message_stop", json!({})),
        ]
    }

    fn failure(error: &ApiError) -> Chunk {
        Chunk { name: Some("error"), data: MessagesError(error.clone()).to_json() }
    }
}
