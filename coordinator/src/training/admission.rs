//! Who may open a session: model, blocks, and room.

use umbel_protocol::training::{OpenTraining, STATE_VALUES_MAX};
use umbel_protocol::{ErrorCode, Span};

use super::{HostConfig, MESSAGES_UNANSWERED_MAX, SESSIONS_MAX, SESSIONS_PER_TRAINER_MAX};

/// Rows of values that a session keeps of each of its values: the adapter's own, two of the optimizer,
/// and the gradients of a step.
const STATE_ROWS: u64 = 4;

/// Bytes of a binary32.
const VALUE_BYTES: u64 = 4;

/// The part of the budget that one session may have, so that the first trainer does not leave
/// everybody else without.
const SESSION_PART: u64 = 2;

/// What is left of the budget, and the blocks on which sessions open.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) span: Span,
    pub(super) bytes_free: u64,
}

impl Admission {
    pub(super) const fn new(span: Span, bytes_max: u64) -> Self {
        Self { span, bytes_free: bytes_max }
    }

    /// Reserves room for a session, or says why there is none.
    pub(super) fn admit(
        &mut self,
        config: &HostConfig,
        open: &OpenTraining,
        (of_all, of_trainer): (usize, usize),
        (draining, is_ending): (bool, bool),
    ) -> Result<(), (ErrorCode, String)> {
        if draining {
            return Err((ErrorCode::Draining, "the server is about to leave".to_owned()));
        }
        if open.model != config.model {
            return Err((ErrorCode::UnknownModel, format!("this server serves {}", config.model)));
        }
        if !self.span.covers(open.blocks) {
            let detail = format!("this server serves blocks {}", self.span);
            return Err((ErrorCode::BlocksNotServed, detail));
        }
        open.adapter
            .check_modules(&config.module_shapes)
            .map_err(|missing| (ErrorCode::BlocksNotServed, missing.to_string()))?;
        if open.tokens_max == 0 {
            let detail = "a training of no token".to_owned();
            return Err((ErrorCode::ContextExceeded, detail));
        }
        if is_ending {
            return Err((ErrorCode::Busy, "the session of this name is about to end".to_owned()));
        }
        if of_all >= SESSIONS_MAX || of_trainer >= SESSIONS_PER_TRAINER_MAX {
            return Err((ErrorCode::Busy, format!("{of_all} trainings are held")));
        }
        let wanted = bytes(config, open);
        let allowed = allowed(config, self.bytes_free);
        if wanted > allowed {
            let detail = format!("the session takes {wanted} bytes, and may take {allowed}");
            return Err((ErrorCode::KvFull, detail));
        }
        self.bytes_free -= wanted;
        Ok(())
    }
}

/// What one session may take where so much is free.
pub(super) fn allowed(config: &HostConfig, bytes_free: u64) -> u64 {
    bytes_free.min(config.bytes_max / SESSION_PART)
}

/// What a session takes at most: its state, what entered each block of the microbatches that are under
/// way, and messages that wait.
pub(super) fn bytes(config: &HostConfig, open: &OpenTraining) -> u64 {
    let blocks = u64::from(open.blocks.block_count());
    let state = values(config, open).saturating_mul(STATE_ROWS * VALUE_BYTES);
    let scales = open.adapter.block_scales(&config.module_shapes).saturating_mul(blocks);
    let state = state.saturating_add(scales.saturating_mul(VALUE_BYTES));
    let kept = row_bytes(config, open).saturating_mul(blocks);
    // While others' work is computed all of its messages wait.
    let waiting = message_bytes_max(config, open).saturating_mul(MESSAGES_UNANSWERED_MAX as u64);
    state.saturating_add(kept).saturating_add(waiting)
}

/// The largest payload that a message of a session has: all its tokens, or a part of its state.
pub(super) fn message_bytes_max(config: &HostConfig, open: &OpenTraining) -> u64 {
    row_bytes(config, open).max(STATE_VALUES_MAX as u64 * VALUE_BYTES)
}

/// Bytes of as many tokens as may be under way, at one place.
fn row_bytes(config: &HostConfig, open: &OpenTraining) -> u64 {
    let values = u64::from(open.tokens_max).saturating_mul(u64::from(config.hidden_size));
    values.saturating_mul(VALUE_BYTES)
}

/// How many values an adapter has in the blocks of a session.
pub(super) fn values(config: &HostConfig, open: &OpenTraining) -> u64 {
    let hidden_size = u64::from(config.hidden_size);
    let of_block = open.adapter.block_values(&config.module_shapes, hidden_size);
    of_block.saturating_mul(u64::from(open.blocks.block_count()))
}

/// How many of them are magnitudes.
pub(super) fn magnitudes(config: &HostConfig, open: &OpenTraining) -> u64 {
    let of_block = open.adapter.block_magnitudes(&config.module_shapes);
    of_block.saturating_mul(u64::from(open.blocks.block_count()))
}
