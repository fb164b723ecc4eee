//! Learned vectors: those that stand before each text, and those that a block adds to the hidden states
//! of the first tokens.

use std::ops::Range;

use super::dense::add_scaled;
use crate::hidden::HiddenStates;

/// Puts a prompt, `[tokens, hidden]`, before each of some texts, which have so many tokens and stand in
/// `hidden` one after the other.
///
/// # Panics
/// Where the texts have not as many tokens as there are rows, or the prompt is for another model.
#[must_use]
pub fn put_before(prompt: &[f32], lengths: &[usize], hidden: &HiddenStates) -> HiddenStates {
    let (width, values) = (hidden.hidden_size(), hidden.to_values());
    let (mut all, mut rest) = (Vec::new(), &*values);
    for tokens in lengths {
        let text = rest.split_off(..tokens * width).expect("the texts have as many tokens as rows");
        all.extend_from_slice(prompt);
        all.extend_from_slice(text);
    }
    assert!(rest.is_empty(), "the texts have as many tokens as rows");
    HiddenStates::from_values(all, width).expect("the prompt is for this model")
}

/// The gradient of a prompt of so many tokens, from that of the rows that [`put_before`] gave: the sum over
/// the sequences, whose lengths here are those with the prompt, in their order.
#[must_use]
pub fn gradient(of_rows: &HiddenStates, lengths: &[usize], tokens: usize) -> Vec<f32> {
    let width = of_rows.hidden_size();
    sum_of_first(&of_rows.to_values(), lengths, width, tokens * width)
}

/// Adds `prompt`, `[prompt tokens, width]`, to those rows that stand at its positions. `positions` are
/// those of each sequence's rows, one sequence after the other.
pub(crate) fn add(
    prompt: &[f32],
    positions: impl IntoIterator<Item = Range<usize>>,
    width: usize,
    rows: &mut [f32],
) {
    let mut start = 0;
    for positions in positions {
        let first = positions.start * width;
        let rows = &mut rows[start..start + positions.len() * width];
        start += rows.len();
        let prompt = prompt.get(first..).unwrap_or_default();
        rows.iter_mut().zip(prompt).for_each(|(value, added)| *value += added);
    }
}

/// The sum of the rows of all sequences at the positions of a prompt of so many values, in the order of
/// the sequences.
pub(crate) fn sum_of_first(
    rows: &[f32],
    lengths: &[usize],
    width: usize,
    prompt_values: usize,
) -> Vec<f32> {
    let (mut sum, mut start) = (vec![0.0; prompt_values], 0);
    for tokens in lengths {
        let rows = &rows[start..start + tokens * width];
        start += rows.len();
        let within = rows.len().min(prompt_values);
        add_scaled(&mut sum[..within], 1.0, &rows[..within]);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_at_the_positions_of_the_prompt_are_added_to_and_no_others() {
        let prompt = [1.0, 2.0, 3.0, 4.0];
        let mut rows = vec![0.0; 7 * 2];
        // The first sequence goes on behind its first token, the second is shorter than the prompt, the
        // third is behind it.
        add(&prompt, [1..4, 0..1, 2..5], 2, &mut rows);
        assert_eq!(rows, [3.0, 4.0, 0., 0., 0., 0., 1.0, 2.0, 0., 0., 0., 0., 0., 0.]);
    }

    #[test]
    fn a_prompt_stands_before_each_text_and_has_the_gradients_of_its_rows() {
        let hidden = HiddenStates::from_values((1..=6).map(|value| value as f32).collect(), 2);
        let all = put_before(&[8.0, 9.0], &[2, 1], &hidden.unwrap());
        assert_eq!(all.to_values(), [8.0, 9.0, 1.0, 2.0, 3.0, 4.0, 8.0, 9.0, 5.0, 6.0]);
        assert_eq!(gradient(&all, &[3, 2], 1), [16.0, 18.0]);
    }

    #[test]
    fn gradients_are_summed_over_the_first_rows_of_each_sequence() {
        let rows: Vec<f32> = (0..8).map(|value| value as f32).collect();
        // One sequence of three tokens and one of one, which the second token of the prompt never meets.
        assert_eq!(sum_of_first(&rows, &[3, 1], 2, 4), [0.0 + 6.0, 1.0 + 7.0, 2.0, 3.0]);
    }
}
