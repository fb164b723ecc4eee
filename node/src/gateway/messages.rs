//! `POST /v1/messages`: Anthropic's interface.

mod request;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use umbel_client::FinishReason;
use umbel_client::text::chat_template::ToolCall;
use umbel_client::text::tools::CallStream;

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
    let asked = gateway.asked(&request.model, &holder)?;
    let mut options = request.options()?;
    let (tools, forced) = request.tools()?.unzip();
    if let Some(format) = forced.flatten() {
        options.grammar = gateway.grammar(format, "tools").await?;
    } else if let Some(format) = request.format() {
        options.grammar = gateway.grammar(format, "output_config").await?;
    }
    let is_begun = request.begins_answer();
    if is_begun && options.grammar.is_some() {
        let message =
            "an answer that is held to a form cannot be begun: end with a turn of the user";
        return Err(ApiError::invalid("messages", message).into());
    }
    options.continues = is_begun;
    let prompt = gateway.encode_chat(request.messages()?, tools.clone(), is_begun).await?;
    let requests = options.requests(&gateway, &prompt)?;
    let usage = Usage { prompt: prompt.len(), completion: 0 };
    let answers = Answers::begin(&gateway, &holder, (&asked, requests), usage.prompt).await?;
    let message = Message {
        id: reply::id("msg_"),
        model: asked.name.clone(),
        usage,
        stop: None,
        calls: tools.map(CallStream::new),
        called: false,
        text_open: false,
        blocks: 0,
    };
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
    /// Where functions may be called, what tells calls from text.
    calls: Option<CallStream>,
    called: bool,
    /// Of a stream: whether its block of text has begun, and how many blocks have.
    text_open: bool,
    blocks: usize,
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

    /// Takes a piece of the answer, and gives what of it is text for certain.
    fn push(&mut self, piece: &str) -> String {
        self.usage.completion += 1;
        match &mut self.calls {
            Some(calls) => calls.push(piece),
            None => piece.to_owned(),
        }
    }

    /// The answer is over: the rest of its text, and its calls as blocks.
    fn finish(&mut self) -> (String, Vec<Value>) {
        let Some(calls) = self.calls.take() else {
            return (String::new(), Vec::new());
        };
        let (rest, calls) = calls.finish();
        self.called = !calls.is_empty();
        let block = |call: ToolCall| {
            let ToolCall { name, arguments, .. } = call;
            json!({ "type": "tool_use", "id": reply::id("toolu_"), "name": name, "input": arguments })
        };
        (rest, calls.into_iter().map(block).collect())
    }

    fn stop(&self) -> (Option<&'static str>, Option<&str>) {
        match &self.stop {
            None => (None, None),
            Some(_) if self.called => (Some("tool_use"), None),
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
            Event::Token { token, .. } => text.push_str(&message.push(&token.text)),
            Event::Finished { reason, stopped_at, .. } => {
                message.stop = Some((reason, stopped_at));
            }
        }
    }
    let (rest, calls) = message.finish();
    text.push_str(&rest);
    let mut content = Vec::new();
    if calls.is_empty() || !text.trim().is_empty() {
        content.push(json!({ "type": "text", "text": text }));
    }
    content.extend(calls);
    Ok(Json(message.to_json(&content.into())).into_response())
}

/// An event, whose data repeats its name.
fn chunk(name: &'static str, mut data: Value) -> Chunk {
    data["type"] = name.into();
    Chunk { name: Some(name), data }
}

impl Message {
    /// The chunks of a piece of text, and before the first of them the beginning of its block.
    fn text(&mut self, text: &str) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        if !self.text_open {
            chunks.push(self.block_start(&json!({ "type": "text", "text": "" })));
            self.text_open = true;
        }
        let delta = json!({ "type": "text_delta", "text": text });
        chunks.push(self.block_delta(&delta));
        chunks
    }

    fn block_start(&mut self, block: &Value) -> Chunk {
        self.blocks += 1;
        let data = json!({ "index": self.blocks - 1, "content_block": block });
        chunk("content_block_start", data)
    }

    /// More of the block that has begun last.
    fn block_delta(&self, delta: &Value) -> Chunk {
        chunk("content_block_delta", json!({ "index": self.blocks - 1, "delta": delta }))
    }

    fn block_stop(&self) -> Chunk {
        chunk("content_block_stop", json!({ "index": self.blocks - 1 }))
    }

    /// The chunks of a call, whose input comes at once, as text.
    fn call(&mut self, mut call: Value) -> Vec<Chunk> {
        let input = std::mem::replace(&mut call["input"], json!({})).to_string();
        let delta = json!({ "type": "input_json_delta", "partial_json": input });
        vec![self.block_start(&call), self.block_delta(&delta), self.block_stop()]
    }
}

impl Chunks for Message {
    const LAST: Option<&'static str> = None;

    fn begin(&mut self) -> Vec<Chunk> {
        vec![chunk("message_start", json!({ "message": self.to_json(&json!([])) }))]
    }

    fn event(&mut self, event: Event) -> Vec<Chunk> {
        match event {
            Event::Token { token, .. } => match self.push(&token.text) {
                text if text.is_empty() => Vec::new(),
                text => self.text(&text),
            },
            Event::Finished { reason, stopped_at, .. } => {
                self.stop = Some((reason, stopped_at));
                Vec::new()
            }
        }
    }

    fn end(&mut self) -> Vec<Chunk> {
        let (rest, calls) = self.finish();
        let mut chunks = Vec::new();
        if !rest.is_empty() || (calls.is_empty() && !self.text_open) {
            chunks.extend(self.text(&rest));
        }
        if self.text_open {
            chunks.push(self.block_stop());
        }
        for call in calls {
            chunks.extend(self.call(call));
        }
        let (reason, sequence) = self.stop();
        let delta = json!({
            "delta": { "stop_reason": reason, "stop_sequence": sequence },
            "usage": { "output_tokens": self.usage.completion },
        });
        chunks.extend([chunk("message_delta", delta), chunk("message_stop", json!({}))]);
        chunks
    }

    fn failure(error: &ApiError) -> Chunk {
        Chunk { name: Some("error"), data: MessagesError(error.clone()).to_json() }
    }
}
