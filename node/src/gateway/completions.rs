//! `POST /v1/completions`: a text goes on, without a chat template.

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
use super::logprobs::Lists;
use super::reply::{Reply, Stream};
use super::usage::Usage;
use super::{Gateway, Turn, body};
use request::CompletionRequest;

pub(super) async fn complete(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    body: Body,
) -> Result<Response, ApiError> {
    let request: CompletionRequest = body::json(body).await?;
    let asked = gateway.asked(&request.model, &holder)?;
    let options = request.options()?;
    let (mut requests, mut choices, mut usage) = (Vec::new(), Vec::new(), Usage::default());
    let own = |error: ApiError| error.renamed("messages", "prompt");
    for prompt in request.prompts()? {
        let (ids, text) = prompt.encode(&gateway, Turn::First).await.map_err(own)?;
        usage.prompt += ids.len();
        requests.extend(options.requests(&gateway, &ids).map_err(own)?);
        let echo = if request.echo() { text } else { String::new() };
        choices.extend((0..options.answers()).map(|_| Choice::beginning(echo.clone())));
    }
    let reply = Reply::new("cmpl", &gateway, &asked);
    let answers = Answers::begin(&gateway, &holder, (&asked, requests), usage.prompt).await?;
    if options.stream {
        let with_usage = options.includes_usage();
        let stream = Stream { reply, object: "text_completion", with_usage };
        let chunks = CompletionChunks { gateway, stream, usage, choices };
        return Ok(events::respond(answers, chunks));
    }
    whole(&gateway, &reply, answers, choices, usage).await
}

/// One answer, as it grows.
struct Choice {
    /// What is not yet sent, the prompt first where it is to come back.
    text: String,
    logprobs: Lists,
    finish: Option<FinishReason>,
}

impl Choice {
    fn beginning(echo: String) -> Self {
        let logprobs = Lists::beginning_at(echo.chars().count());
        Self { text: echo, logprobs, finish: None }
    }

    /// The JSON of what has grown since the last time.
    fn take(&mut self, index: usize) -> Value {
        json!({
            "index": index,
            "text": std::mem::take(&mut self.text),
            "logprobs": self.logprobs.take(),
            "finish_reason": self.finish.map(FinishReason::as_str),
        })
    }
}

/// Lets the answers grow by what has happened, and says which one did.
fn grow(gateway: &Gateway, choices: &mut [Choice], usage: &mut Usage, event: Event) -> usize {
    match event {
        Event::Token { answer, token } => {
            usage.completion += 1;
            choices[answer].text.push_str(&token.text);
            choices[answer].logprobs.push(gateway.tokenizer(), &token);
            answer
        }
        Event::Finished { answer, reason, .. } => {
            choices[answer].finish = Some(reason);
            answer
        }
    }
}

async fn whole(
    gateway: &Gateway,
    reply: &Reply,
    mut answers: Answers,
    mut choices: Vec<Choice>,
    mut usage: Usage,
) -> Result<Response, ApiError> {
    while let Some(event) = answers.next().await {
        grow(gateway, &mut choices, &mut usage, event?);
    }
    let choices = choices.iter_mut().enumerate().map(|(index, choice)| choice.take(index));
    let mut answer = reply.object("text_completion", choices.collect());
    answer["usage"] = usage.to_json();
    Ok(Json(answer).into_response())
}

/// The chunks of a stream.
struct CompletionChunks {
    gateway: Arc<Gateway>,
    stream: Stream,
    usage: Usage,
    choices: Vec<Choice>,
}

impl Chunks for CompletionChunks {
    fn begin(&mut self) -> Vec<Chunk> {
        Vec::new()
    }

    fn event(&mut self, event: Event) -> Vec<Chunk> {
        let index = grow(&self.gateway, &mut self.choices, &mut self.usage, event);
        let choice = &mut self.choices[index];
        if choice.text.is_empty() && choice.finish.is_none() {
            return Vec::new();
        }
        let choice = choice.take(index);
        vec![self.stream.chunk(vec![choice]).into()]
    }

    fn end(&mut self) -> Vec<Chunk> {
        self.stream.end(self.usage)
    }
}
