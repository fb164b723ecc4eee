//! Which experts a token goes through, and how much of each goes into the sum.

use umbel_shard::Experts;

use crate::kernel::exponential;
use crate::kernel::parallel::for_each;

/// Values that one thread adds up: a product and a sum each.
const SHARE_VALUES: usize = 32 * 1024;

/// The ways of the tokens of a pass.
#[derive(Debug, PartialEq)]
pub(crate) struct Routing {
    experts: Experts,
    /// As many for each token as it goes through, in the order of the experts' numbers.
    steps: Vec<Step>,
    /// The experts that some token goes through, in the order of their numbers.
    groups: Vec<Group>,
}

/// A token's way through one expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    /// The number of the expert.
    pub(crate) expert: usize,
    /// What its output is multiplied with.
    pub(crate) weight: f32,
    /// The group of the expert.
    pub(crate) group: usize,
    /// The token's place in it.
    pub(crate) row: usize,
}

/// The tokens that go through one expert.
#[derive(Debug, PartialEq)]
pub(crate) struct Group {
    /// The number of the expert.
    pub(crate) expert: usize,
    /// The tokens, in their order.
    pub(crate) tokens: Vec<usize>,
}

impl Group {
    /// The rows of its tokens, of `size` values each.
    pub(crate) fn gather(&self, rows: &[f32], size: usize) -> Vec<f32> {
        let mut own = Vec::with_capacity(self.tokens.len() * size);
        self.tokens.iter().for_each(|token| own.extend_from_slice(&rows[token * size..][..size]));
        own
    }
}

/// The ways that follow from `logits`, which are `[tokens, experts]`.
///
/// A token goes through the experts with the largest logits; of those with the same the first.
pub(crate) fn route(experts: Experts, logits: &[f32]) -> Routing {
    let Experts { count, per_token, .. } = experts;
    let tokens = logits.len() / count;
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); count];
    let mut steps = Vec::with_capacity(tokens * per_token);
    for (token, logits) in logits.chunks_exact(count).enumerate() {
        let chosen = largest(logits, per_token);
        let weights = weights(experts, logits, &chosen);
        for (expert, weight) in chosen.into_iter().zip(weights) {
            let row = members[expert].len();
            members[expert].push(token);
            steps.push(Step { expert, weight, group: 0, row });
        }
    }
    let mut group_of = vec![0; count];
    let mut groups = Vec::new();
    for (expert, tokens) in members.into_iter().enumerate().filter(|(_, own)| !own.is_empty()) {
        group_of[expert] = groups.len();
        groups.push(Group { expert, tokens });
    }
    steps.iter_mut().for_each(|step| step.group = group_of[step.expert]);
    Routing { experts, steps, groups }
}

/// The numbers of so many of the largest, in ascending order.
fn largest(logits: &[f32], count: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..logits.len()).collect();
    let by_logit =
        |&one: &usize, &other: &usize| logits[other].total_cmp(&logits[one]).then(one.cmp(&other));
    if count < numbers.len() {
        numbers.select_nth_unstable_by(count, by_logit);
        numbers.truncate(count);
    }
    numbers.sort_unstable();
    numbers
}

/// The softmax of the chosen ones' logits: among themselves, or among all.
fn weights(experts: Experts, logits: &[f32], chosen: &[usize]) -> Vec<f32> {
    let largest = chosen.iter().map(|&expert| logits[expert]).fold(f32::NEG_INFINITY, f32::max);
    let exponentials = chosen.iter().map(|&expert| exponential(logits[expert] - largest));
    let exponentials: Vec<f32> = exponentials.collect();
    let sum: f32 = if experts.normalized {
        exponentials.iter().sum()
    } else {
        logits.iter().map(|logit| exponential(logit - largest)).sum()
    };
    exponentials.into_iter().map(|exponential| exponential / sum).collect()
}

impl Routing {
    /// The experts that some token goes through, with their tokens.
    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The steps of each token.
    pub(crate) fn of_tokens(&self) -> impl Iterator<Item = &[Step]> {
        self.steps.chunks_exact(self.experts.per_token)
    }

    /// For each group the rows of its tokens.
    pub(crate) fn gather(&self, rows: &[f32], size: usize) -> Vec<Vec<f32>> {
        let mut all: Vec<_> = self.groups.iter().map(|_| Vec::new()).collect();
        if self.steps.len() * size < SHARE_VALUES {
            all.iter_mut().zip(&self.groups).for_each(|(own, of)| *own = of.gather(rows, size));
        } else {
            for_each(all.iter_mut().zip(&self.groups), |(own, of)| *own = of.gather(rows, size));
        }
        all
    }

    /// The weight of each token of a group.
    pub(crate) fn weights_of<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = f32> + 'a {
        group.tokens.iter().map(|&token| {
            let steps = &self.steps[token * self.experts.per_token..][..self.experts.per_token];
            let step = steps.iter().find(|step| step.expert == group.expert);
            step.expect("its tokens go through the expert").weight
        })
    }

    /// What each token's experts made of it, times their weights and added up: from a list of rows of `size`
    /// values for each group to `[tokens, size]`.
    pub(crate) fn sum(&self, outputs: &[Vec<f32>], size: usize) -> Vec<f32> {
        let per_token = self.experts.per_token;
        let mut sums = vec![0.0; self.steps.len() / per_token * size];
        let share = (SHARE_VALUES / (size * per_token)).max(1);
        let shares = sums.chunks_mut(share * size).zip(self.steps.chunks(share * per_token));
        for_each(shares, |(sums, steps)| {
            for (sum, steps) in sums.chunks_exact_mut(size).zip(steps.chunks_exact(per_token)) {
                for step in steps {
                    let output = &outputs[step.group][step.row * size..][..size];
                    let places = sum.iter_mut().zip(output);
                    places.for_each(|(sum, value)| *sum += step.weight * value);
                }
            }
        });
        sums
    }

    /// From the gradients of a token's weights to those of its logits, for all tokens: from one for each step
    /// to `[tokens, experts]`, where `logits` are.
    ///
    /// A weight is a softmax, `w_i = e^(l_i) / sum`, so that a logit that is part of the sum has
    /// `w_j (g_j - sum of w_i g_i)`, with the gradients `g` of the weights, which are 0 of those that were
    /// not chosen.
    pub(crate) fn of_logits(&self, of_weights: &[f32], logits: &[f32]) -> Vec<f32> {
        let Experts { count, per_token, normalized } = self.experts;
        let mut found = vec![0.0; logits.len()];
        let tokens = found.chunks_exact_mut(count).zip(logits.chunks_exact(count));
        let tokens = tokens.zip(self.of_tokens().zip(of_weights.chunks_exact(per_token)));
        for ((found, logits), (steps, of_weights)) in tokens {
            let products = steps.iter().zip(of_weights).map(|(step, of)| step.weight * of);
            let mean: f32 = products.sum();
            if !normalized {
                let all: Vec<usize> = (0..count).collect();
                let weights = weights(self.experts, logits, &all);
                found.iter_mut().zip(weights).for_each(|(found, weight)| *found = -weight * mean);
            }
            for (step, of) in steps.iter().zip(of_weights) {
                let own = if normalized { of - mean } else { *of };
                found[step.expert] += step.weight * own;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experts(normalized: bool) -> Experts {
        Experts { count: 4, per_token: 2, normalized }
    }

    #[test]
    fn a_token_goes_through_the_experts_with_the_largest_logits() {
        let logits = [0.0, 2.0, 1.0, -1.0, 3.0, 3.0, 3.0, 3.0];
        let routing = route(experts(true), &logits);
        let ways: Vec<Vec<usize>> = routing
            .of_tokens()
            .map(|steps| steps.iter().map(|step| step.expert).collect())
            .collect();
        assert_eq!(ways, [[1, 2], [0, 1]], "of those alike the first");
        let groups: Vec<_> =
            routing.groups().iter().map(|group| (group.expert, &group.tokens[..])).collect();
        assert_eq!(groups, [(0, &[1][..]), (1, &[0, 1]), (2, &[0])]);
        assert_eq!(routing.steps[0].row, 0);
        assert_eq!((routing.steps[3].group, routing.steps[3].row), (1, 1));
    }

    #[test]
    fn weights_are_the_softmax_of_the_chosen_or_of_all() {
        let logits = [0.0, 2.0, 1.0, -1.0];
        let weight = |normalized| route(experts(normalized), &logits).steps[0].weight;
        let e = std::f32::consts::E;
        assert!((weight(true) - e / (1.0 + e)).abs() < 1e-6);
        let all: f32 = logits.iter().map(|logit| logit.exp()).sum();
        assert!((weight(false) - e * e / all).abs() < 1e-6);
    }

    /// What comes from a peer may be no number at all.
    #[test]
    fn logits_that_are_no_numbers_choose_something() {
        for logits in [[f32::NAN; 4], [f32::NEG_INFINITY; 4], [f32::INFINITY, 1.0, f32::NAN, 0.0]] {
            for normalized in [true, false] {
                let routing = route(experts(normalized), &logits);
                assert_eq!(routing.steps.len(), 2);
                assert!(routing.steps[0].expert < routing.steps[1].expert);
            }
        }
        assert!(route(experts(true), &[]).groups().is_empty());
    }

    #[test]
    fn a_sum_has_each_experts_output_times_its_weight() {
        let routing = route(experts(true), &[0.0, 2.0, 2.0, -1.0, 5.0, 0.0, 5.0, 0.0]);
        let outputs = [vec![10.0, 20.0], vec![1.0, 2.0], vec![3.0, 4.0, 30.0, 40.0]];
        assert_eq!(routing.sum(&outputs, 2), [2.0, 3.0, 20.0, 30.0]);
    }
}
