//! `POST /v1/chat/completions`.

mod request;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use umbel_client::{FinishReason, Token};

use super::answer::{Answers, Event};
use super::error::ApiError;
use super::events::{self, Chunk, Chunks};
use super::keys::Holder;
use super::logprobs;
use super::usage::Usage;
use super::{Gateway, body, reply};
use request::ChatRequest;

pub(super) async fn complete(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    body: Body,
) -> Result<Response, ApiError> {
    let request: ChatRequest = body::json(body).await?;
    gateway.check_model(&request.model)?;
    let mut options = request.options()?;
    if let Some(format) = request.response_format() {
        options.grammar = gateway.grammar(format).await?;
    }
    let prompt = gateway.encode_chat(&request.messages()?).await?;
    let mut requests = options.requests(&gateway, &prompt)?;
    if let Some(expected) = request.prediction() {
        let expected = gateway.encode_plain(expected).await?;
        requests.iter_mut().for_each(|request| request.expected.clone_from(&expected));
    }
    let reply = reply::Reply::new("chatcmpl", &gateway);
    let usage = Usage { prompt: prompt.len(), completion: 0 };
    holder.spend(prompt.len());
    let answers = Answers::begin(&gateway, &holder, requests).await?;
    if options.stream {
        let (count, with_usage) = (options.answers(), options.includes_usage());
        let chunks = ChatChunks { gateway, reply, usage, count, with_usage };
        return Ok(events::respond(answers, chunks));
    }
    whole(&gateway, &reply, answers, options.answers(), usage).await
}

/// One answer, as it grows.
#[derive(Default)]
struct Choice {
    text: String,
    logprobs: Vec<Value>,
    finish: Option<FinishReason>,
}

async fn whole(
    gateway: &Gateway,
    reply: &reply::Reply,
    mut answers: Answers,
    count: u32,
    mut usage: Usage,
) -> Result<Response, ApiError> {
    let mut choices: Vec<Choice> = (0..count).map(|_| Choice::default()).collect();
    while let Some(event) = answers.next().await {
        match event? {
            Event::Token { answer, token } => {
                usage.completion += 1;
                choices[answer].text.push_str(&token.text);
                choices[answer].logprobs.extend(logprobs::of_chat(gateway, &token));
            }
            Event::Finished { answer, reason, .. } => choices[answer].finish = Some(reason),
        }
    }
    let choice = |(index, choice): (usize, Choice)| {
        let Choice { text, logprobs, finish } = choice;
        json!({
            "index": index,
            "message": { "role": "assistant", "content": text, "refusal": null },
            "logprobs": content(logprobs),
            "finish_reason": finish.map(FinishReason::as_str),
        })
    };
    let choices: Vec<_> = choices.into_iter().enumerate().map(choice).collect();
    let mut answer = reply.object("chat.completion", choices);
    answer["usage"] = usage.to_json();
    Ok(Json(answer).into_response())
}

fn content(logprobs: Vec<Value>) -> Value {
    if logprobs.is_empty() { Value::Null } else { json!({ "content": logprobs, "refusal": null }) }
}

/// The chunks of a stream.
struct ChatChunks {
    gateway: Arc<Gateway>,
    reply: reply::Reply,
    usage: Usage,
    count: u32,
    with_usage: bool,
}

impl ChatChunks {
    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.reply.object("chat.completion.chunk", choices);
        if self.with_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn choice(answer: usize, delta: &Value, logprobs: &Value, finish: Option<&str>) -> Value {
        json!({
            "index": answer,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish,
        })
    }

    fn token(&mut self, answer: usize, token: &Token) -> Vec<Chunk> {
        self.usage.completion += 1;
        let logprobs: Vec<_> = logprobs::of_chat(&self.gateway, token).into_iter().collect();
        if token.text.is_empty() && logprobs.is_empty() {
            return Vec::new();
        }
        let delta = json!({ "content": token.text });
        vec![self.chunk(vec![Self::choice(answer, &delta, &content(logprobs), None)]).into()]
    }
}

impl Chunks for ChatChunks {
    fn begin(&mut self) -> Vec<Chunk> {
        let delta = json!({ "role": "assistant", "content": "", "refusal": null });
        let first = |answer: u32| Self::choice(answer as usize, &delta, &Value::Null, None);
        (0..self.count).map(|answer| self.chunk(vec![first(answer)]).into()).collect()
    }

    fn event(&mut self, event: Event) -> Vec<Chunk> {
        match event {
            Event::Token { answer, token } => self.token(answer, &token),
            Event::Finished { answer, reason, .. } => {
                let finish = Some(reason.as_str());
                vec![
                    self.chunk(vec![Self::choice(answer, &json!({}), &Value::Null, finish)]).into(),
                ]
            }
        }
    }

    fn end(&mut self) -> Vec<Chunk> {
        if !self.with_usage {
            return Vec::new();
        }
        let mut last = self.chunk(Vec::new());
        last["usage"] = self.usage.to_json();
        vec![last.into()]
    }
}
