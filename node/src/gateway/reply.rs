//! What all answers carry: a name, a date, the model.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::events::Chunk;
use super::usage::Usage;
use super::{Asked, Gateway};

/// The frame of an answer, the same in all chunks of a stream.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
}

impl Reply {
    pub(super) fn new(prefix: &str, gateway: &Gateway, asked: &Asked) -> Self {
        Self {
            id: id(&format!("{prefix}-")),
            created: unix_seconds(),
            model: asked.name.clone(),
            fingerprint: gateway.fingerprint(),
        }
    }

    pub(super) fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

/// The chunks of a stream, which all have the frame of the answer.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) reply: Reply,
    /// What a chunk is called.
    pub(super) object: &'static str,
    /// Whether the last one says what the request has cost, and the others that they do not.
    pub(super) with_usage: bool,
}

impl Stream {
    pub(super) fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.reply.object(self.object, choices);
        if self.with_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// What follows the last token.
    pub(super) fn end(&self, usage: Usage) -> Vec<Chunk> {
        if !self.with_usage {
            return Vec::new();
        }
        let mut last = self.chunk(Vec::new());
        last["usage"] = usage.to_json();
        vec![last.into()]
    }
}

/// A name that begins so; where the system has no randomness, two things may share one.
pub(super) fn id(prefix: &str) -> String {
    format!("{prefix}{:016x}", getrandom::u64().unwrap_or_default())
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
