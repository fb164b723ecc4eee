//! Cross-entropy at the ends of a model, which the client computes, and its gradient.

use super::norm;
use crate::ends::Ends;
use crate::hidden::HiddenStates;
use crate::kernel::add_transposed;
use crate::operation;

/// Logits that are held at once: 16 MiB, or one token's.
const LOGITS_MAX: usize = 4 << 20;

/// How badly tokens were foretold.
#[derive(Debug)]
pub struct Loss {
    /// The sum over all tokens with a target, in natural units.
    pub sum: f64,
    /// How many tokens have one.
    pub targets: usize,
    /// The gradient of `sum * weight` by what left the last block.
    pub gradient: HiddenStates,
}

impl Ends {
    /// The cross-entropy of each row of `hidden`, which left the last block, with its target: the
    /// token that should follow it, or `None` where it teaches nothing.
    ///
    /// The gradient is that of the sum times `weight`: one over the number of targets in all
    /// microbatches gives that of the mean.
    ///
    /// # Errors
    /// [`LossError`] where there is not a target for each row, a token is unknown, or `hidden` is of
    /// another model.
    pub fn loss(
        &self,
        hidden: &HiddenStates,
        targets: &[Option<u32>],
        weight: f32,
    ) -> Result<Loss, LossError> {
        let (size, vocabulary_size) = (self.hidden_size(), self.vocabulary_size());
        let found = [hidden.token_count(), hidden.hidden_size()];
        if found != [targets.len(), size] {
            return Err(LossError::Shape { expected: [targets.len(), size], found });
        }
        let unknown = |id: &u32| *id as usize >= vocabulary_size;
        if let Some(id) = targets.iter().flatten().copied().find(unknown) {
            return Err(LossError::UnknownToken { id, vocabulary_size });
        }
        let values = operation::with_values(hidden.tensor(), <[f32]>::to_vec)
            .expect("hidden states are contiguous binary32 on the processor");
        let mut gradient = vec![0.0; values.len()];
        let mut sum = 0.0;
        let share = (LOGITS_MAX / vocabulary_size).max(1);
        let rows = values.chunks(share * size).zip(gradient.chunks_mut(share * size));
        for ((hidden, gradient), targets) in rows.zip(targets.chunks(share)) {
            sum += self.loss_of_rows(hidden, targets, weight, gradient);
        }
        let gradient = HiddenStates::from_values(gradient, size)
            .expect("the gradient has the shape of the hidden states");
        Ok(Loss { sum, targets: targets.iter().flatten().count(), gradient })
    }

    /// From the gradient of what [`Ends::normed`] gives to that of `hidden`, which left the last block: for
    /// heads of one's own.
    ///
    /// # Errors
    /// [`LossError`] where the two have not one shape, or are of another model.
    pub fn normed_gradient(
        &self,
        hidden: &HiddenStates,
        gradient: &HiddenStates,
    ) -> Result<HiddenStates, LossError> {
        let expected = [hidden.token_count(), self.hidden_size()];
        for states in [hidden, gradient] {
            let found = [states.token_count(), states.hidden_size()];
            if found != expected {
                return Err(LossError::Shape { expected, found });
            }
        }
        let (values, gradient) = (hidden.to_values(), gradient.to_values());
        let mut of_hidden = vec![0.0; values.len()];
        let (norm, _) = self.norm_and_head();
        norm::add_gradient(norm, &values, &gradient, &mut of_hidden);
        Ok(HiddenStates::from_values(of_hidden, self.hidden_size())
            .expect("the gradient has the shape of the hidden states"))
    }

    /// The sum of the losses of some rows; their gradients are added to `gradient`.
    fn loss_of_rows(
        &self,
        hidden: &[f32],
        targets: &[Option<u32>],
        weight: f32,
        gradient: &mut [f32],
    ) -> f64 {
        let (norm, head) = self.norm_and_head();
        let normed = norm.apply(hidden);
        let mut logits = head.multiply(&normed);
        let mut sum = 0.0;
        for (logits, target) in logits.chunks_exact_mut(head.rows()).zip(targets) {
            match target {
                Some(target) => sum += cross_entropy(logits, *target as usize, weight),
                None => logits.fill(0.0),
            }
        }
        let mut of_normed = vec![0.0; normed.len()];
        add_transposed(head.weight(), &logits, &mut of_normed);
        norm::add_gradient(norm, hidden, &of_normed, gradient);
        sum
    }
}

/// The negative logarithm of the probability of `target`. In the place of the logits comes `weight`
/// times their gradient: the probabilities, less one at the target.
fn cross_entropy(logits: &mut [f32], target: usize, weight: f32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let of_target = f64::from(logits[target] - largest);
    let mut total = 0.0;
    for logit in logits.iter_mut() {
        let exponential = f64::from(*logit - largest).exp();
        total += exponential;
        *logit = narrow(exponential);
    }
    let scale = narrow(f64::from(weight) / total);
    logits.iter_mut().for_each(|value| *value *= scale);
    logits[target] -= weight;
    total.ln() - of_target
}

#[expect(clippy::cast_possible_truncation, reason = "gradients are binary32")]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// Targets that do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LossError {
    /// Not a target for each row, or hidden states of another model.
    #[error("the hidden states are {found:?}; targets and model make them {expected:?}")]
    Shape {
        /// Tokens, and values of each.
        expected: [usize; 2],
        /// Those of the hidden states.
        found: [usize; 2],
    },
    /// An id beyond the vocabulary.
    #[error("token id {id} is not in the vocabulary of {vocabulary_size} tokens")]
    UnknownToken {
        /// The id.
        id: u32,
        /// How many tokens the model knows.
        vocabulary_size: usize,
    },
}

#[cfg(test)]
mod tests;
