//! One delta from those of several trainers, some of which may send what they like.

use super::delta::{Delta, GROUP_VALUES};

/// How deltas are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Their mean. One trainer can make of it what it likes.
    Mean,
    /// The mean of each value without its smallest and largest ([`outliers`] each): as long as no more than
    /// that many trainers send something else than they have learned, each value is within those of the
    /// others (Yin et al. 2018, <https://arxiv.org/abs/1803.01498>).
    TrimmedMean,
}

/// Of how many trainers the deltas do no harm: a fifth, rounded up, but fewer than half.
#[must_use]
pub const fn outliers(trainers: usize) -> usize {
    let fifth = trainers.div_ceil(5);
    let below_half = trainers.saturating_sub(1) / 2;
    if fifth < below_half { fifth } else { below_half }
}

/// Combines deltas of `value_count` values each. Additions have one order, so that the bits depend on the
/// deltas alone and not on who computes it, nor on the order in which they came.
///
/// # Panics
/// If there is no delta, or one has another number of values.
#[must_use]
pub fn combine(rule: Rule, deltas: &[&Delta], value_count: usize) -> Vec<f32> {
    assert!(!deltas.is_empty(), "there is something to combine");
    assert!(deltas.iter().all(|delta| delta.value_count() == value_count), "all have as many");
    let trimmed = match rule {
        Rule::Mean => 0,
        Rule::TrimmedMean => outliers(deltas.len()),
    };
    let mut combined = Vec::with_capacity(value_count);
    let mut columns = vec![Vec::with_capacity(deltas.len()); GROUP_VALUES.min(value_count)];
    for group in 0..value_count.div_ceil(GROUP_VALUES) {
        columns.iter_mut().for_each(Vec::clear);
        for delta in deltas {
            columns.iter_mut().zip(delta.group(group)).for_each(|(column, v)| column.push(v));
        }
        for column in columns.iter_mut().filter(|column| !column.is_empty()) {
            column.sort_unstable_by(f32::total_cmp);
            combined.push(mean(&column[trimmed..column.len() - trimmed]));
        }
    }
    combined
}

fn mean(values: &[f32]) -> f32 {
    let sum: f64 = values.iter().copied().map(f64::from).sum();
    #[expect(clippy::cast_possible_truncation, reason = "deltas are binary32")]
    let mean = (sum / values.len() as f64) as f32;
    mean
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::delta::Feedback;
    use super::*;

    fn delta(values: &[f32]) -> Delta {
        Feedback::default().narrow(values).unwrap().0
    }

    fn combined(rule: Rule, rows: &[Vec<f32>]) -> Vec<f32> {
        let deltas: Vec<_> = rows.iter().map(|row| delta(row)).collect();
        combine(rule, &deltas.iter().collect::<Vec<_>>(), rows[0].len())
    }

    #[test]
    fn the_outliers_of_a_few_are_few() {
        let expected = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3];
        assert_eq!((0..12).map(outliers).collect::<Vec<_>>(), expected);
        assert_eq!((outliers(13), outliers(16)), (3, 4));
    }

    #[test]
    fn one_liar_moves_a_mean_and_no_trimmed_mean() {
        let rows = [vec![1.0; 3], vec![1.0; 3], vec![1.0; 3], vec![-1e30; 3]];
        assert!(combined(Rule::Mean, &rows)[0] < -1e29);
        let robust = combined(Rule::TrimmedMean, &rows);
        assert!(robust.iter().all(|value| (value - 1.0).abs() < 1e-6), "{robust:?}");
    }

    proptest! {
        #[test]
        fn each_value_is_within_those_of_the_honest_in_whatever_order_they_come(
            honest in prop::collection::vec(prop::collection::vec(-1.0f32..1.0, 300), 5..12),
            lies in prop::collection::vec(prop::collection::vec(-1e9f32..1e9, 300), 0..2),
            turn in 0usize..12,
        ) {
            let sent: Vec<_> = honest.iter().map(|row| delta(row)).collect();
            let mut rows = honest.clone();
            rows.extend(lies);
            let together = combined(Rule::TrimmedMean, &rows);
            let turn = turn % rows.len();
            rows.rotate_left(turn);
            prop_assert_eq!(&combined(Rule::TrimmedMean, &rows), &together);
            for (place, value) in together.iter().enumerate() {
                let of = |delta: &Delta| delta.group(place / GROUP_VALUES).nth(place % GROUP_VALUES);
                let honest: Vec<f32> = sent.iter().filter_map(of).collect();
                let (least, most) = (
                    honest.iter().copied().fold(f32::INFINITY, f32::min),
                    honest.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                );
                prop_assert!((least..=most).contains(value), "{value} in {honest:?}");
            }
        }
    }
}
