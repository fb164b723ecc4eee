//! Activations as integers.

use super::*;
use crate::kernel::specimen::{Numbers, bits};

/// The integers of one token, from what the kernels of `set` read.
fn prepare(
    set: InstructionSet,
    kind: WeightType,
    arithmetic: Arithmetic,
    input: &[f32],
) -> (Vec<i32>, Vec<TokenFactors>) {
    let tokens = Tokens::prepare(set, kind, arithmetic, input, input.len());
    let TokenTile::Integers(tile) = tokens.tile(0) else { unreachable!("not exact") };
    let integers = |words: &Words| integers(order(set, kind), words);
    (tile.words.iter().flat_map(integers).collect(), tile.factors.to_vec())
}

/// How the kernels of `set` for weights of `kind` read a block.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(unused_variables, reason = "only AVX2 has an order for one kind")
)]
fn order(set: InstructionSet, kind: WeightType) -> Order {
    match set {
        InstructionSet::Portable => Order::Pairs,
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(avx2) if kind == WeightType::Q8_0 && !avx2.has_vnni() => Order::Pairs,
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(_) | InstructionSet::Avx512(_) | InstructionSet::Amx(_) => {
            Order::Bytes
        }
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon(neon) => {
            if neon.has_products() {
                Order::Bytes
            } else {
                Order::Columns
            }
        }
    }
}

/// The integers of a block, column by column.
fn integers(order: Order, words: &Words) -> Vec<i32> {
    let bytes = |words: &[i32]| -> Vec<i32> {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes().map(|b| i32::from(b.cast_signed())))
            .collect()
    };
    let pair = |word: i32| [word << 16 >> 16, word >> 16];
    match order {
        Order::Bytes => {
            let (upper, lower) = words.0.split_at(QUADS);
            let digits = bytes(upper).into_iter().zip(bytes(lower));
            digits.map(|(upper, lower)| upper * 256 + lower).collect()
        }
        Order::Pairs => {
            let quad = |words: &[i32; 2]| {
                let [[first, third], [second, fourth]] = words.map(pair);
                [first, second, third, fourth]
            };
            words.0.as_chunks::<2>().0.iter().flat_map(quad).collect()
        }
        #[cfg(target_arch = "aarch64")]
        Order::Columns => words.0.into_iter().flat_map(pair).collect(),
    }
}

#[test]
fn every_instruction_set_has_the_same_integers() {
    let mut numbers = Numbers(41);
    // Magnitudes from the smallest numbers to the largest.
    let input: Vec<f32> = (0..32_768)
        .map(|_| f32::from_bits(u32::try_from(numbers.next() >> 32).unwrap()))
        .map(|value| if value.is_finite() { value } else { 1.0 })
        .collect();
    for arithmetic in [Arithmetic::Usual, Arithmetic::Careful] {
        let expected = prepare(InstructionSet::Portable, WeightType::Q6K, arithmetic, &input);
        for set in InstructionSet::all() {
            let found = prepare(set, WeightType::Q6K, arithmetic, &input);
            assert_eq!(found.0, expected.0, "{set:?}");
            let floats = |factors: &[TokenFactors]| {
                bits(&factors.iter().flat_map(|f| [f.scale, f.sum]).collect::<Vec<_>>())
            };
            assert_eq!(floats(&found.1), floats(&expected.1), "{set:?}");
            assert!(found.1.iter().zip(&expected.1).all(|(a, b)| a.offsets == b.offsets));
        }
    }
}

#[test]
fn ties_go_to_even_and_the_ends_are_reached() {
    let mut input = [0.0; 32];
    input[..6].copy_from_slice(&[32_512.0, -32_512.0, 0.5, 1.5, -2.5, 300.0]);
    for set in InstructionSet::all() {
        let (integers, factors) = prepare(set, WeightType::Q4_0, Arithmetic::Careful, &input);
        assert_eq!(integers[..6], [32_512, -32_512, 0, 2, -2, 300]);
        assert_eq!((factors[0].scale, factors[0].sum), (1.0, 300.0));
        // Q4_0 is written as 8 too many.
        assert_eq!(factors[0].offsets, [-8 * 300, 0]);
        let (integers, _) = prepare(set, WeightType::Q4_0, Arithmetic::Usual, &input);
        assert_eq!(integers[..6], [127, -127, 0, 0, 0, 1]);
    }
}

#[test]
fn both_halves_of_q6_k_have_their_offset() {
    let mut input = [1.0; 256];
    input[40] = -1.0;
    for set in InstructionSet::all() {
        let (_, factors) = prepare(set, WeightType::Q6K, Arithmetic::Usual, &input);
        let step = 32 * 127;
        assert_eq!(factors[0].offsets, [-16 * step, -16 * step]);
        assert_eq!(factors[1].offsets, [-14 * step, -16 * step]);
    }
}

#[test]
fn what_is_nearly_zero_becomes_zeros_and_what_is_no_number_shows() {
    for set in InstructionSet::all() {
        for smallest in [0.0, -0.0, f32::from_bits(1), 3e-34] {
            let (integers, factors) =
                prepare(set, WeightType::Q8_0, Arithmetic::Usual, &[smallest; 32]);
            assert_eq!(integers, [0; 32]);
            assert_eq!(factors[0], TokenFactors { scale: 0.0, sum: 0.0, offsets: [0; 2] });
        }
        let (integers, factors) =
            prepare(set, WeightType::Q8_0, Arithmetic::Usual, &[LARGEST_MIN; 32]);
        assert_eq!(integers, [127; 32]);
        assert!(factors[0].scale.is_normal());
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut input = [1.0; 96];
            input[77] = wrong;
            let (_, factors) = prepare(set, WeightType::Q8_0, Arithmetic::Usual, &input);
            assert!(factors[2].scale.is_nan() && factors[2].sum.is_nan());
            assert!(factors[1].scale.is_finite());
        }
    }
}
