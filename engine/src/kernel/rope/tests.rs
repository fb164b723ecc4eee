//! Angles and rotations against the formula.

use super::*;
use crate::kernel::specimen::{Numbers, bits};

fn table(theta: f32, scaling: RopeScaling, head_size: usize) -> RopeTable {
    RopeTable::new(&Rope { theta, scaling }, head_size)
}

/// An angle is rounded to binary32: half a unit of its size.
const ANGLE_ERROR_MAX: f64 = f32::EPSILON as f64;

#[test]
fn a_pair_turns_by_its_frequency_times_the_position() {
    let (head_size, heads) = (64, 3);
    let table = table(10_000.0, RopeScaling::None, head_size);
    for position in [0, 1, 255, 256, 5000, 100_000] {
        let before = Numbers(12).floats(2 * heads * head_size);
        let mut after = before.clone();
        rope(&table, &mut after, heads, position);
        for (index, (before, after)) in
            before.chunks(head_size).zip(after.chunks(head_size)).enumerate()
        {
            let position = (position + index / heads) as f64;
            for pair in 0..32 {
                let angle = position * 10_000f64.powf(-(pair as f64) / 32.0);
                let (x, y) = (f64::from(before[pair]), f64::from(before[pair + 32]));
                let error_max = 4.0 * ANGLE_ERROR_MAX * (1.0 + angle);
                let turned = [x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin()];
                for (exact, value) in turned.into_iter().zip([after[pair], after[pair + 32]]) {
                    assert!((f64::from(value) - exact).abs() <= error_max, "{position}, {pair}");
                }
            }
        }
    }
}

#[test]
fn the_bits_of_a_token_do_not_depend_on_the_tokens_beside_it() {
    let table = table(500_000.0, RopeScaling::None, 128);
    let position = SEGMENTS_KEPT * SEGMENT_POSITIONS - 150;
    let mut together = Numbers(13).floats(300 * 2 * 128);
    let mut alone = together.clone();
    rope(&table, &mut together, 2, position);
    for (index, token) in alone.chunks_mut(2 * 128).enumerate() {
        rope(&table, token, 2, position + index);
    }
    assert_eq!(bits(&together), bits(&alone));
}

#[test]
fn scalings_slow_the_pairs_that_they_say() {
    let plain = table(10_000.0, RopeScaling::None, 128).inverse_frequency;
    assert_eq!((plain[0], plain[32]), (1.0, 0.01));
    let linear = table(10_000.0, RopeScaling::Linear { factor: 4.0 }, 128).inverse_frequency;
    let factors: Vec<f32> = (0..64).map(|pair| 1.0 + pair as f32).collect();
    let each = table(10_000.0, RopeScaling::Factors(factors), 128).inverse_frequency;
    for pair in 0..64 {
        assert_eq!(linear[pair], plain[pair] / 4.0);
        assert_eq!(each[pair], plain[pair] / (1.0 + pair as f32));
    }
}

#[test]
fn llama_3_slows_long_waves_and_blends_those_between() {
    let plain = table(500_000.0, RopeScaling::None, 128).inverse_frequency;
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context_tokens: 8192,
    };
    let scaled = table(500_000.0, scaling, 128).inverse_frequency;
    let mut kinds = [0; 3];
    for (plain, scaled) in plain.into_iter().zip(scaled) {
        let turns = 8192.0 * plain / (2.0 * PI);
        if turns > 4.0 {
            assert_eq!(scaled, plain);
            kinds[0] += 1;
        } else if turns < 1.0 {
            assert_eq!(scaled, plain / 8.0);
            kinds[1] += 1;
        } else {
            let smooth = (turns - 1.0) / 3.0;
            let exact = plain * (smooth + (1.0 - smooth) / 8.0);
            assert!((scaled - exact).abs() <= 1e-5 * exact);
            kinds[2] += 1;
        }
    }
    assert!(kinds.iter().all(|&count| count > 3), "{kinds:?}");
}

#[test]
fn yarn_slows_all_but_the_fastest_pairs_and_lengthens_the_turn() {
    let plain = table(10_000.0, RopeScaling::None, 128).inverse_frequency;
    let yarn = |truncate| {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_context_tokens: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.138_629_4,
            truncate,
        };
        table(10_000.0, scaling, 128)
    };
    let table = yarn(true);
    assert_eq!(table.inverse_frequency[0], plain[0]);
    assert_eq!(table.inverse_frequency[63], plain[63] / 4.0);
    // 32 turns in 4,096 positions are reached at pair 20.9, one turn at 45.0.
    assert_eq!(table.inverse_frequency[20], plain[20]);
    assert!(table.inverse_frequency[21] < plain[21]);
    assert!(table.inverse_frequency[45] > plain[45] / 4.0);
    assert_eq!(table.inverse_frequency[47], plain[47] / 4.0);
    assert_eq!(table.turns(0)[0].cosine, 1.138_629_4);
    assert_ne!(yarn(false).inverse_frequency[30], table.inverse_frequency[30]);
}
