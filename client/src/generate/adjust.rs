//! What is done to the logits of a token before it is chosen, besides what a sampler does.

use std::collections::BTreeMap;

/// Additions to logits, as OpenAI's interface knows them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Adjust {
    /// What is added to the logits of single tokens.
    pub bias: BTreeMap<u32, f32>,
    /// What is taken from the logit of each token that the answer has had.
    pub presence: f32,
    /// What is taken from it for each time that it has had it.
    pub frequency: f32,
}

impl Adjust {
    /// Applies it to the logits of the token that follows `answer`. Tokens that there are not are
    /// passed over.
    pub(super) fn apply(&self, logits: &mut [f32], answer: &[u32]) {
        for (id, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        if self.presence == 0.0 && self.frequency == 0.0 {
            return;
        }
        let mut counts: BTreeMap<u32, f32> = BTreeMap::new();
        for id in answer {
            *counts.entry(*id).or_default() += 1.0;
        }
        for (id, count) in counts {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= self.presence + self.frequency * count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Adjust;

    #[test]
    fn a_token_is_biased_once_and_penalized_by_how_often_it_came() {
        let bias = [(1, 2.0), (9, 5.0)].into_iter().collect();
        let adjust = Adjust { bias, presence: 0.5, frequency: 0.25 };
        let mut logits = [1.0, 1.0, 1.0];
        adjust.apply(&mut logits, &[2, 0, 2, 7]);
        assert_eq!(logits, [1.0 - 0.75, 3.0, 1.0 - 1.0]);
        let mut logits = [1.0, 1.0, 1.0];
        Adjust::default().apply(&mut logits, &[0, 1]);
        assert_eq!(logits, [1.0; 3]);
    }
}
