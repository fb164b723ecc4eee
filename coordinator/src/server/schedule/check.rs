//! Which steps are taken into the queue.

use umbel_protocol::error::ErrorCode;
use umbel_protocol::inference::Step;

use super::Load;
use crate::server::STEPS_QUEUED_PER_SESSION_MAX;
use crate::server::admission::Refusal;
use crate::server::ring::is_of_ids;
use crate::server::served::Served;

/// Whether a step fits its session; the position after it.
pub(in crate::server) fn check(
    step: &Step,
    served: &Served,
    hidden_size: u32,
    waiting: Load,
) -> Result<u32, Refusal> {
    let refuse = |code, detail| Err(Refusal { code, detail });
    let &[tokens, hidden] = step.hidden.shape() else {
        let detail = format!("hidden states are [tokens, {hidden_size}]");
        return refuse(ErrorCode::WrongShape, detail);
    };
    if let Some(thin) = served.thin.as_ref().filter(|thin| thin.enters) {
        thin.check_ids(&step.hidden)?;
    } else if tokens == 0 || hidden != hidden_size || is_of_ids(&step.hidden) {
        let detail = format!("hidden states are [tokens, {hidden_size}], not [{tokens}, {hidden}]");
        return refuse(ErrorCode::WrongShape, detail);
    }
    if step.position > served.received {
        let detail = format!(
            "the cache has {} tokens, the step begins at {}",
            served.received, step.position
        );
        return refuse(ErrorCode::WrongPosition, detail);
    }
    let end = step.position.checked_add(tokens).filter(|end| *end <= served.tokens_max);
    let Some(end) = end else {
        let detail = format!("the session was opened for {} tokens", served.tokens_max);
        return refuse(ErrorCode::ContextExceeded, detail);
    };
    // A replay brings the whole context once more while a step may wait: never more than twice.
    let too_many_tokens = waiting.tokens + u64::from(tokens) > 2 * u64::from(served.tokens_max);
    if waiting.steps >= STEPS_QUEUED_PER_SESSION_MAX || too_many_tokens {
        let detail = format!("{} steps of the session wait", waiting.steps);
        return refuse(ErrorCode::Busy, detail);
    }
    Ok(end)
}
