//! Cross-entropy at the ends of a model, which the client computes, and its gradient.

use super::{narrow, norm};
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
    /// token that should follow it, or `None` where it teaches nothing, and costs nothing.
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
        let size = self.hidden_size();
        let mut gradient = vec![0.0; targets.len() * size];
        let (norm, head) = self.norm_and_head();
        let sum = self.sum_over(hidden, targets, |taught, hidden, mut logits| {
            let sum = taught.cross_entropy(&mut logits, Some(weight));
            let mut of_normed = vec![0.0; hidden.len()];
            add_transposed(head.weight(), &logits, &mut of_normed);
            let mut of_hidden = vec![0.0; hidden.len()];
            norm::add_gradient(norm, hidden, &of_normed, &mut of_hidden);
            for ((row, _), of_row) in taught.0.iter().zip(of_hidden.chunks_exact(size)) {
                gradient[row * size..][..size].copy_from_slice(of_row);
            }
            sum
        })?;
        let gradient = HiddenStates::from_values(gradient, size)
            .expect("the gradient has the shape of the hidden states");
        Ok(Loss { sum, targets: targets.iter().flatten().count(), gradient })
    }

    /// The [`sum`](Loss::sum) of [`Ends::loss`] alone, which takes half as many multiplications.
    ///
    /// # Errors
    /// As [`Ends::loss`].
    pub fn loss_sum(
        &self,
        hidden: &HiddenStates,
        targets: &[Option<u32>],
    ) -> Result<f64, LossError> {
        self.sum_over(hidden, targets, |taught, _, mut logits| {
            taught.cross_entropy(&mut logits, None)
        })
    }

    /// The sum of what `sum` gives for the rows with a target, some at a time: it is told which they are,
    /// what left the last block there, and their logits.
    fn sum_over(
        &self,
        hidden: &HiddenStates,
        targets: &[Option<u32>],
        mut sum: impl FnMut(Taught<'_>, &[f32], Vec<f32>) -> f64,
    ) -> Result<f64, LossError> {
        let (size, vocabulary_size) = (self.hidden_size(), self.vocabulary_size());
        let found = [hidden.token_count(), hidden.hidden_size()];
        if found != [targets.len(), size] {
            return Err(LossError::Shape { expected: [targets.len(), size], found });
        }
        let unknown = |id: &u32| *id as usize >= vocabulary_size;
        if let Some(id) = targets.iter().flatten().copied().find(unknown) {
            return Err(LossError::UnknownToken { id, vocabulary_size });
        }
        let rows = targets.iter().enumerate();
        let taught: Vec<_> = rows.filter_map(|(row, target)| Some((row, (*target)?))).collect();
        let (norm, head) = self.norm_and_head();
        let sums = operation::with_values(hidden.tensor(), |values| {
            // No bit of a row's logits or gradient depends on the rows beside it.
            let sums = taught.chunks((LOGITS_MAX / vocabulary_size).max(1)).map(|taught| {
                let row = |(row, _): &(usize, u32)| &values[row * size..][..size];
                let hidden = taught.iter().map(row).collect::<Vec<_>>().concat();
                let logits = head.multiply(&norm.apply(&hidden));
                sum(Taught(taught), &hidden, logits)
            });
            sums.fold(0.0, |total, sum| total + sum)
        });
        Ok(sums.expect("hidden states are contiguous binary32 on the processor"))
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
}

/// Rows with a target: which they are, and the token that should follow.
#[derive(Clone, Copy)]
struct Taught<'a>(&'a [(usize, u32)]);

impl Taught<'_> {
    /// The sum of the losses. Where they have a `weight`, the gradient of the sum times that comes in the
    /// place of the logits.
    fn cross_entropy(self, logits: &mut [f32], weight: Option<f32>) -> f64 {
        let logits = logits.chunks_exact_mut(logits.len() / self.0.len());
        let losses = logits.zip(self.0);
        losses.fold(0.0, |sum, (logits, (_, target))| {
            sum + cross_entropy(logits, *target as usize, weight)
        })
    }
}

/// The negative logarithm of the probability of `target`. In the place of the logits comes their
/// gradient, where it has a `weight`, times that: the probabilities, less one at the target.
fn cross_entropy(logits: &mut [f32], target: usize, weight: Option<f32>) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let of_target = f64::from(logits[target] - largest);
    let mut total = 0.0;
    for logit in logits.iter_mut() {
        let exponential = f64::from(*logit - largest).exp();
        total += exponential;
        *logit = narrow(exponential);
    }
    if let Some(weight) = weight {
        let scale = narrow(f64::from(weight) / total);
        logits.iter_mut().for_each(|value| *value *= scale);
        logits[target] -= weight;
    }
    total.ln() - of_target
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
