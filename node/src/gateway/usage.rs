//! What a request has cost, in tokens.

use serde_json::{Value, json};

/// Tokens read and written for a request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    /// Of the prompts, each counted once however many answers it has.
    pub(super) prompt: usize,
    /// Of the answers.
    pub(super) completion: usize,
}

impl Usage {
    pub(super) fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}
