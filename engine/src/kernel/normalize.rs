//! Normalization by the root mean square.

use super::{LANES, PARALLEL_WORK_MIN, parallel};

/// Divides each row of `input` by the root of the mean of its squares, plus `epsilon` beneath the
/// root, and multiplies it with `weight` (Zhang and Sennrich 2019,
/// <https://arxiv.org/abs/1910.07467>). A row has as many values as `weight`.
///
/// # Panics
/// Where `input` has not whole rows or `output` another size.
pub fn rms_norm(input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
    assert!(!weight.is_empty(), "a row has values");
    assert_eq!(input.len() % weight.len(), 0, "the input has whole rows");
    assert_eq!(input.len(), output.len(), "the output has the input's size");
    // One row at least, and as many as are worth a thread.
    let share = (PARALLEL_WORK_MIN / weight.len()).max(1) * weight.len();
    let shares = output.chunks_mut(share).zip(input.chunks(share));
    parallel::for_each(shares, |(output, input)| {
        let rows = output.chunks_exact_mut(weight.len()).zip(input.chunks_exact(weight.len()));
        rows.for_each(|(output, input)| norm_row(input, weight, epsilon, output));
    });
}

fn norm_row(input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
    let mean = sum_of_squares(input) / input.len() as f32;
    let inverse = 1.0 / (mean + epsilon).sqrt();
    for ((output, input), weight) in output.iter_mut().zip(input).zip(weight) {
        *output = weight * (input * inverse);
    }
}

/// Sums over every eighth value, added from the first to the last.
fn sum_of_squares(input: &[f32]) -> f32 {
    let (octets, rest) = input.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for octet in octets {
        for (sum, value) in sums.iter_mut().zip(octet) {
            *sum += value * value;
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += value * value;
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative: a sum of 1,000 squares in 8 lanes (about the root of 125 half units in each, and
    /// halved by the square root), the root, the quotient and two products.
    const ERROR_MAX: f64 = 8.0 * f32::EPSILON as f64;

    fn row(length: usize, seed: f32) -> Vec<f32> {
        (0..length).map(|index| ((index as f32 + seed) * 1.7).sin() * 3.0).collect()
    }

    #[test]
    fn a_row_is_divided_by_its_root_mean_square() {
        for length in [1, 7, 8, 64, 577, 1000] {
            let (input, weight) = (row(length, 0.3), row(length, 5.0));
            let mut output = vec![0.0; length];
            rms_norm(&input, &weight, 1e-5, &mut output);
            let squares: f64 = input.iter().map(|&value| f64::from(value).powi(2)).sum();
            let root = (squares / length as f64 + f64::from(1e-5_f32)).sqrt();
            for ((&output, &input), &weight) in output.iter().zip(&input).zip(&weight) {
                let exact = f64::from(weight) * f64::from(input) / root;
                assert!((f64::from(output) - exact).abs() <= ERROR_MAX * exact.abs(), "{exact}");
            }
        }
    }

    #[test]
    fn the_bits_of_a_row_do_not_depend_on_the_rows_beside_it() {
        let (input, weight) = (row(300 * 577, 0.9), row(577, 2.0));
        let mut together = vec![0.0; input.len()];
        rms_norm(&input, &weight, 1e-6, &mut together);
        for (together, input) in together.chunks(577).zip(input.chunks(577)) {
            let mut alone = vec![0.0; 577];
            rms_norm(input, &weight, 1e-6, &mut alone);
            assert_eq!(alone, together);
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let mut output = [1.0; 16];
        rms_norm(&[0.0; 16], &[2.0; 16], 1e-5, &mut output);
        assert_eq!(output, [0.0; 16]);
    }
}
