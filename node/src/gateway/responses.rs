//! `POST /v1/responses`, for text.

mod request;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use umbel_client::FinishReason;

use super::answer::{Answers, Event};
use super::error::ApiError;
use super::events::{self, Chunk, Chunks};
use super::keys::Holder;
use super::usage::Usage;
use super::{Asked, Gateway, body, reply};
use request::ResponsesRequest;

pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    body: Body,
) -> Result<Response, ApiError> {
    let request: ResponsesRequest = body::json(body).await?;
    let asked = gateway.asked(&request.model, &holder)?;
    let mut options = request.options()?;
    if let Some(format) = request.format() {
        options.grammar = gateway.grammar(format, "text").await?;
    }
    let own = |error: ApiError| error.renamed("messages", "input");
    let prompt = gateway.encode_chat(request.messages()?, None, false).await.map_err(own)?;
    let requests = options.requests(&gateway, &prompt).map_err(own)?;
    let usage = Usage { prompt: prompt.len(), completion: 0 };
    let answers = Answers::begin(&gateway, &holder, (&asked, requests), usage.prompt).await?;
    let grown = Grown::new(&asked, &request, usage);
    if options.stream {
        return Ok(events::respond(answers, grown));
    }
    whole(grown, answers).await
}

/// An answer, as it grows.
struct Grown {
    /// What does not change: the frame of the response.
    frame: Value,
    item_id: String,
    text: String,
    usage: Usage,
    finish: Option<FinishReason>,
    /// Events that were sent.
    sequence: u64,
}

impl Grown {
    fn new(asked: &Asked, request: &ResponsesRequest, usage: Usage) -> Self {
        let frame = json!({
            "id": reply::id("resp_"),
            "object": "response",
            "created_at": reply::unix_seconds(),
            "background": false,
            "error": null,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata.clone().unwrap_or_else(|| json!({})),
            "model": asked.name,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "reasoning": { "effort": null, "summary": null },
            "store": false,
            "temperature": request.temperature.unwrap_or(1.0),
            "text": { "format": request.format_to_json() },
            "tool_choice": "auto",
            "tools": [],
            "top_p": request.top_p.unwrap_or(1.0),
            "truncation": "disabled",
            "user": null,
        });
        let (text, item_id) = (String::new(), reply::id("msg_"));
        Self { frame, item_id, text, usage, finish: None, sequence: 0 }
    }

    fn status(&self) -> &'static str {
        match self.finish {
            None => "in_progress",
            Some(FinishReason::Stop) => "completed",
            Some(FinishReason::Length) => "incomplete",
        }
    }

    /// The response as it stands, with this output.
    fn response(&self, output: Vec<Value>) -> Value {
        let mut response = self.frame.clone();
        response["status"] = self.status().into();
        response["output"] = output.into();
        let is_cut = self.finish == Some(FinishReason::Length);
        response["incomplete_details"] =
            if is_cut { json!({ "reason": "max_output_tokens" }) } else { Value::Null };
        response["usage"] = match self.finish {
            None => Value::Null,
            Some(_) => json!({
                "input_tokens": self.usage.prompt,
                "input_tokens_details": { "cached_tokens": 0 },
                "output_tokens": self.usage.completion,
                "output_tokens_details": { "reasoning_tokens": 0 },
                "total_tokens": self.usage.prompt + self.usage.completion,
            }),
        };
        response
    }

    fn item(&self, content: Vec<Value>) -> Value {
        json!({
            "id": self.item_id,
            "type": "message",
            "status": self.status(),
            "role": "assistant",
            "content": content,
        })
    }

    fn part(&self) -> Value {
        json!({ "type": "output_text", "text": self.text, "annotations": [], "logprobs": [] })
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Token { token, .. } => {
                self.usage.completion += 1;
                self.text.push_str(&token.text);
            }
            Event::Finished { reason, .. } => self.finish = Some(*reason),
        }
    }

    /// An event, whose data repeats its name and has a number.
    fn chunk(&mut self, name: &'static str, mut data: Value) -> Chunk {
        data["type"] = name.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        Chunk { name: Some(name), data }
    }

    /// An event that speaks of the one part of the one item.
    fn of_part(&mut self, name: &'static str, field: &str, value: Value) -> Chunk {
        let mut data = json!({ "item_id": self.item_id, "output_index": 0, "content_index": 0 });
        data[field] = value;
        if field != "part" {
            data["logprobs"] = json!([]);
        }
        self.chunk(name, data)
    }
}

async fn whole(mut grown: Grown, mut answers: Answers) -> Result<Response, ApiError> {
    while let Some(event) = answers.next().await {
        grown.take(&event?);
    }
    let item = grown.item(vec![grown.part()]);
    Ok(Json(grown.response(vec![item])).into_response())
}

impl Chunks for Grown {
    const LAST: Option<&'static str> = None;

    fn begin(&mut self) -> Vec<Chunk> {
        let response = self.response(Vec::new());
        let (item, part) = (self.item(Vec::new()), self.part());
        vec![
            self.chunk("response.created", json!({ "response": response })),
            self.chunk("response.in_progress", json!({ "response": response })),
            self.chunk("response.output_item.added", json!({ "output_index": 0, "item": item })),
            self.of_part("response.content_part.added", "part", part),
        ]
    }

    fn event(&mut self, event: Event) -> Vec<Chunk> {
        self.take(&event);
        match event {
            Event::Token { token, .. } if !token.text.is_empty() => {
                vec![self.of_part("response.output_text.delta", "delta", token.text.into())]
            }
            Event::Token { .. } | Event::Finished { .. } => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Chunk> {
        let (text, part) = (self.text.clone(), self.part());
        let item = self.item(vec![part.clone()]);
        let response = self.response(vec![item.clone()]);
        let name = match self.finish {
            Some(FinishReason::Length) => "response.incomplete",
            Some(FinishReason::Stop) | None => "response.completed",
        };
        vec![
            self.of_part("response.output_text.done", "text", text.into()),
            self.of_part("response.content_part.done", "part", part),
            self.chunk("response.output_item.done", json!({ "output_index": 0, "item": item })),
            self.chunk(name, json!({ "response": response })),
        ]
    }

    fn failure(error: &ApiError) -> Chunk {
        let mut data = error.to_json()["error"].take();
        data["type"] = "error".into();
        Chunk { name: Some("error"), data }
    }
}
