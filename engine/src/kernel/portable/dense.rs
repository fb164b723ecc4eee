//! Weights in floating point.

use crate::kernel::LANES;
use crate::kernel::matmul::{Panel, TILE_TOKENS};

/// Each dot product is [`LANES`] sums over every eighth column, added from the first to the last.
pub(super) fn multiply<const N: usize>(
    panel: Panel<'_>,
    outputs: &mut [&mut [f32]],
    widen: impl Fn(&[u8; N]) -> f32 + Copy,
) {
    let tokens: Vec<_> = (0..outputs.len())
        .map(|token| panel.activations.floats(panel.first_token + token))
        .collect();
    for (index, row) in panel.rows() {
        let weights = row.as_chunks::<N>().0;
        let (octets, rest) = weights.as_chunks::<LANES>();
        let mut sums = [[0.0; LANES]; TILE_TOKENS];
        for (place, octet) in octets.iter().enumerate() {
            let weights = octet.map(|bytes| widen(&bytes));
            for (sums, token) in sums.iter_mut().zip(&tokens) {
                let inputs = &token.as_chunks::<LANES>().0[place];
                for lane in 0..LANES {
                    sums[lane] += weights[lane] * inputs[lane];
                }
            }
        }
        for ((sums, token), output) in sums.iter_mut().zip(&tokens).zip(outputs.iter_mut()) {
            let inputs = token.as_chunks::<LANES>().1;
            for ((sum, weight), input) in sums.iter_mut().zip(rest).zip(inputs) {
                *sum += widen(weight) * input;
            }
            output[index] = sums.iter().sum();
        }
    }
}
