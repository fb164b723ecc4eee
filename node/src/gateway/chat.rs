//! `POST /v1/chat/completions`.

mod request;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use umbel_client::text::chat_template::ToolCall;
use umbel_client::text::tools::{CallStream, Tools};
use umbel_client::{FinishReason, Token};

use super::answer::{Answers, Event};
use super::error::ApiError;
use super::events::{self, Chunk, Chunks};
use super::keys::Holder;
use super::logprobs;
use super::usage::Usage;
use super::{Gateway, body, reply, trace};
use request::{ChatRequest, ChatTools};

/// Why an answer ended that calls functions.
const TOOL_CALLS: &str = "tool_calls";

pub(super) async fn complete(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    body: Body,
) -> Result<Response, ApiError> {
    let request: ChatRequest = body::json(body).await?;
    let asked = gateway.asked(&request.model, &holder)?;
    let mut options = request.options()?;
    let (tools, forced) = match request.tools()? {
        Some(ChatTools { tools, forced }) => (Some(tools), forced),
        None => (None, None),
    };
    if let Some(format) = forced {
        options.grammar = gateway.grammar(format, "tools").await?;
    } else if let Some(format) = request.response_format() {
        options.grammar = gateway.grammar(format, "response_format").await?;
    }
    let (messages, values) = (request.messages()?, request.template_values()?);
    let prompt = gateway.encode_chat_with(messages, tools.clone(), values).await?;
    let mut requests = options.requests(&gateway, &prompt)?;
    if let Some(expected) = request.prediction() {
        let expected = gateway.encode_plain(expected).await?;
        requests.iter_mut().for_each(|request| request.expected.clone_from(&expected));
    }
    let reply = reply::Reply::new("chatcmpl", &gateway, &asked);
    let usage = Usage { prompt: prompt.len(), completion: 0 };
    let answers = Answers::begin(&gateway, &holder, (&asked, requests), usage.prompt).await?;
    let choices = (0..options.answers()).map(|_| Choice::new(tools.clone())).collect();
    if options.stream {
        let with_usage = options.includes_usage();
        let stream = reply::Stream { reply, object: "chat.completion.chunk", with_usage };
        let traces = request.traces();
        let chunks = ChatChunks { gateway, stream, usage, choices, traces };
        return Ok(events::respond(answers, chunks));
    }
    whole(&gateway, &reply, answers, choices, usage).await
}

/// One answer, as it grows.
struct Choice {
    text: String,
    /// Where functions may be called, what tells calls from text.
    calls: Option<CallStream>,
    logprobs: Vec<Value>,
    /// Whether there has been no token yet.
    at_start: bool,
    finish: Option<FinishReason>,
}

impl Choice {
    fn new(tools: Option<Tools>) -> Self {
        let calls = tools.map(CallStream::new);
        Self { text: String::new(), calls, logprobs: Vec::new(), at_start: true, finish: None }
    }

    /// Takes a piece of the answer, and gives what of it is text for certain.
    fn push(&mut self, piece: &str) -> String {
        match &mut self.calls {
            Some(calls) => calls.push(piece),
            None => piece.to_owned(),
        }
    }

    /// How likely the next token was, if that was asked for.
    fn logprobs(&mut self, gateway: &Gateway, token: &Token) -> Option<Value> {
        let at_start = std::mem::replace(&mut self.at_start, false);
        logprobs::of_chat(gateway.tokenizer(), at_start, token)
    }

    /// The answer is over: the rest of its text, and its calls.
    fn finish(&mut self) -> (String, Vec<Value>) {
        let Some(calls) = self.calls.take() else {
            return (String::new(), Vec::new());
        };
        let (rest, calls) = calls.finish();
        (rest, calls.into_iter().enumerate().map(call).collect())
    }
}

/// A call of a function, as an answer holds it.
fn call((index, call): (usize, ToolCall)) -> Value {
    let arguments = Value::Object(call.arguments).to_string();
    json!({
        "index": index,
        "id": reply::id("call_"),
        "type": "function",
        "function": { "name": call.name, "arguments": arguments },
    })
}

async fn whole(
    gateway: &Gateway,
    reply: &reply::Reply,
    mut answers: Answers,
    mut choices: Vec<Choice>,
    mut usage: Usage,
) -> Result<Response, ApiError> {
    while let Some(event) = answers.next().await {
        match event? {
            Event::Token { answer, token } => {
                usage.completion += 1;
                let choice = &mut choices[answer];
                let shown = choice.push(&token.text);
                choice.text.push_str(&shown);
                let logprobs = choice.logprobs(gateway, &token);
                choice.logprobs.extend(logprobs);
            }
            Event::Finished { answer, reason, .. } => choices[answer].finish = Some(reason),
        }
    }
    let choices = choices.into_iter().enumerate().map(|(index, mut choice)| {
        let (rest, calls) = choice.finish();
        let text = format!("{}{rest}", choice.text);
        let finish = if calls.is_empty() {
            choice.finish.map(FinishReason::as_str)
        } else {
            Some(TOOL_CALLS)
        };
        let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
        if !calls.is_empty() {
            let content = Some(text.trim_end()).filter(|text| !text.is_empty());
            message["content"] = content.into();
            message["tool_calls"] = calls.into_iter().map(without_index).collect();
        }
        json!({
            "index": index,
            "message": message,
            "logprobs": content(choice.logprobs),
            "finish_reason": finish,
        })
    });
    let mut answer = reply.object("chat.completion", choices.collect());
    answer["usage"] = usage.to_json();
    Ok(Json(answer).into_response())
}

/// Calls are numbered in streams alone.
fn without_index(mut call: Value) -> Value {
    if let Some(fields) = call.as_object_mut() {
        fields.remove("index");
    }
    call
}

fn content(logprobs: Vec<Value>) -> Value {
    if logprobs.is_empty() { Value::Null } else { json!({ "content": logprobs, "refusal": null }) }
}

/// The chunks of a stream.
struct ChatChunks {
    gateway: Arc<Gateway>,
    stream: reply::Stream,
    usage: Usage,
    choices: Vec<Choice>,
    /// Whether they say where their time went.
    traces: bool,
}

impl ChatChunks {
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
        let choice = &mut self.choices[answer];
        let logprobs: Vec<_> = choice.logprobs(&self.gateway, token).into_iter().collect();
        let text = choice.push(&token.text);
        if text.is_empty() && logprobs.is_empty() && !self.traces {
            return Vec::new();
        }
        let delta = json!({ "content": text });
        let choice = Self::choice(answer, &delta, &content(logprobs), None);
        let mut chunk = self.stream.chunk(vec![choice]);
        if self.traces {
            chunk[trace::FIELD] = trace::of(token);
        }
        vec![chunk.into()]
    }

    fn finished(&mut self, answer: usize, reason: FinishReason) -> Vec<Chunk> {
        let (rest, calls) = self.choices[answer].finish();
        let finish = if calls.is_empty() { reason.as_str() } else { TOOL_CALLS };
        let mut deltas = Vec::new();
        if !rest.is_empty() {
            deltas.push((json!({ "content": rest }), None));
        }
        if !calls.is_empty() {
            deltas.push((json!({ "tool_calls": calls }), None));
        }
        deltas.push((json!({}), Some(finish)));
        let chunk = |(delta, finish): &(Value, Option<&str>)| {
            self.stream.chunk(vec![Self::choice(answer, delta, &Value::Null, *finish)]).into()
        };
        deltas.iter().map(chunk).collect()
    }
}

impl Chunks for ChatChunks {
    fn begin(&mut self) -> Vec<Chunk> {
        let delta = json!({ "role": "assistant", "content": "", "refusal": null });
        let first = |answer: usize| Self::choice(answer, &delta, &Value::Null, None);
        (0..self.choices.len())
            .map(|answer| self.stream.chunk(vec![first(answer)]).into())
            .collect()
    }

    fn event(&mut self, event: Event) -> Vec<Chunk> {
        match event {
            Event::Token { answer, token } => self.token(answer, &token),
            Event::Finished { answer, reason, .. } => self.finished(answer, reason),
        }
    }

    fn end(&mut self) -> Vec<Chunk> {
        self.stream.end(self.usage)
    }
}
