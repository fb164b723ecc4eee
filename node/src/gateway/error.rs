//! What a request that fails is answered, in the shape that clients of OpenAI's interface read.

use std::fmt::Write as _;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use umbel_client::GenerateError;
use umbel_client::model::PromptError;

/// When a client may come back that was turned away by others: a short answer takes as long.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What OpenAI calls a prompt that leaves no room.
const TOO_LONG: &str = "context_length_exceeded";

/// A request that is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    /// The field that is at fault.
    param: Option<String>,
    message: String,
    /// When who was turned away may come back.
    retry_after: Duration,
}

impl ApiError {
    /// The request says something that it must not.
    pub(super) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = Some(param.into());
        Self { param, ..Self::refused(StatusCode::BAD_REQUEST, message) }
    }

    /// The request asks for something that is not built.
    pub(super) fn unsupported(param: &str, what: &str) -> Self {
        let code = Some("unsupported_parameter");
        Self { code, ..Self::invalid(param, format!("{what} is not supported: leave it out")) }
    }

    /// The request as a whole cannot be read.
    pub(super) fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = "invalid_request_error";
        let (message, retry_after) = (message.into(), RETRY_AFTER);
        Self { status, kind, code: None, param: None, message, retry_after }
    }

    pub(super) fn unknown_model(asked: &str, served: &str) -> Self {
        Self::no_model(format!("the model {asked:?} is not served here; {served:?} is"))
    }

    /// There is no such model.
    pub(super) fn no_model(message: String) -> Self {
        Self {
            code: Some("model_not_found"),
            param: Some("model".to_owned()),
            ..Self::refused(StatusCode::NOT_FOUND, message)
        }
    }

    /// As many of `what` wait already as may.
    pub(super) fn busy(waiting: usize, what: &str) -> Self {
        let message = format!("{waiting} {what} wait already: come back later");
        Self {
            kind: "rate_limit_error",
            code: Some("rate_limit_exceeded"),
            ..Self::refused(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// The holder of a key has used up what it may, for so long.
    pub(super) fn over_budget(name: &str, what: &str, retry_after: Duration) -> Self {
        let message = format!("{name} has used up the {what} of this minute");
        Self {
            retry_after,
            kind: "rate_limit_error",
            code: Some("rate_limit_exceeded"),
            ..Self::refused(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// The request has no key, or one that is not known.
    pub(super) fn no_key() -> Self {
        let message = "a key of this gateway is needed: send it as `Authorization: Bearer KEY`";
        Self {
            kind: "authentication_error",
            code: Some("invalid_api_key"),
            ..Self::refused(StatusCode::UNAUTHORIZED, message)
        }
    }

    /// There is no room for another session, in the swarm or in this process.
    pub(super) fn full(failure: &(dyn std::error::Error + 'static)) -> Self {
        let message = format!("all room is taken: come back later ({})", chain(failure));
        Self {
            kind: "rate_limit_error",
            code: Some("rate_limit_exceeded"),
            ..Self::refused(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// A text cannot fit, whatever its tokens are.
    pub(super) fn too_long(param: &str, bytes: usize, context: usize) -> Self {
        let message = format!(
            "{param} has {bytes} bytes, more than the {context} tokens of the context can hold: \
             shorten it"
        );
        let code = Some(TOO_LONG);
        Self { code, ..Self::invalid(param, message) }
    }

    /// An adapter that was learned here is not as it was left.
    pub(super) fn unreadable() -> Self {
        let message = "the adapter of this model cannot be read: tell whoever runs this gateway";
        Self { kind: "server_error", ..Self::refused(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// The swarm cannot answer now.
    pub(super) fn unavailable(error: &anyhow::Error) -> Self {
        let message = format!("the swarm cannot answer: {}", chain(error.as_ref()));
        Self { kind: "server_error", ..Self::refused(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// Whoever asked left the tokens of an answer unread until it was given up.
    pub(super) fn unread() -> Self {
        let message = "the answer was given up: its tokens were not read in time";
        Self { kind: "server_error", ..Self::refused(StatusCode::GATEWAY_TIMEOUT, message) }
    }

    /// Those who are said to have an adapter do not send it.
    pub(super) fn not_sent(error: &(dyn std::error::Error + 'static)) -> Self {
        let kind = "server_error";
        Self { kind, ..Self::refused(StatusCode::SERVICE_UNAVAILABLE, chain(error)) }
    }

    /// The same where the interface calls a field by another name.
    pub(super) fn renamed(mut self, from: &str, to: &str) -> Self {
        if self.param.as_deref() == Some(from) {
            self.param = Some(to.to_owned());
            self.message = self.message.replace(from, to);
        }
        self
    }

    /// The object that the body is, and an event in a stream.
    pub(super) fn to_json(&self) -> Value {
        let Self { kind, code, param, message, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

/// The same error in the shape that clients of Anthropic's interface read.
#[derive(Debug)]
pub(super) struct MessagesError(pub(super) ApiError);

impl MessagesError {
    pub(super) fn to_json(&self) -> Value {
        let Self(ApiError { status, message, .. }) = self;
        let kind = match *status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            _ => "invalid_request_error",
        };
        json!({ "type": "error", "error": { "type": kind, "message": message } })
    }
}

impl From<ApiError> for MessagesError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for MessagesError {
    fn into_response(self) -> Response {
        let body = self.to_json();
        self.0.respond(body)
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let message = chain(&error);
        match error {
            GenerateError::PromptTooLong { .. } => {
                Self { code: Some(TOO_LONG), ..Self::invalid("messages", message) }
            }
            GenerateError::EmptyPrompt | GenerateError::UnknownToken { .. } => {
                Self::invalid("prompt", message)
            }
            GenerateError::Sampling(_) | GenerateError::Grammar(_) => {
                Self::refused(StatusCode::BAD_REQUEST, message)
            }
            GenerateError::Step(step) if step.is_full() => Self::full(&step),
            // A gateway has the ends and no thin sessions, so the first two are mistakes of its own.
            GenerateError::NoWeights
            | GenerateError::NoLogits
            | GenerateError::NotNumbers(_)
            | GenerateError::Ends(_)
            | GenerateError::Step(_) => Self::unavailable(&error.into()),
        }
    }
}

impl From<PromptError> for ApiError {
    fn from(error: PromptError) -> Self {
        Self::invalid("messages", chain(&error))
    }
}

impl ApiError {
    fn respond(self, body: Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            let after = HeaderValue::from(self.retry_after.as_secs());
            response.headers_mut().insert(header::RETRY_AFTER, after);
        }
        if matches!(self.status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
            // What is left of the body is not read, so that no other request can follow it.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.to_json();
        self.respond(body)
    }
}

/// An error and its causes in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            write!(line, ": {text}").expect("a string takes all text");
        }
        cause = error.source();
    }
    line
}
