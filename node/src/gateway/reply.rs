//! What all answers carry: a name, a date, the model.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Gateway;

/// The frame of an answer, the same in all chunks of a stream.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
}

impl Reply {
    pub(super) fn new(prefix: &str, gateway: &Gateway) -> Self {
        Self {
            id: id(&format!("{prefix}-")),
            created: unix_seconds(),
            model: gateway.model_name().to_owned(),
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

/// A name that begins so; where the system has no randomness, two things may share one.
pub(super) fn id(prefix: &str) -> String {
    format!("{prefix}{:016x}", getrandom::u64().unwrap_or_default())
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
