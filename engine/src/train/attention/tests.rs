//! Long sequences, whose attention is done in parts.

use std::cell::Cell;

use super::*;

const SHAPE: AttentionShape = AttentionShape { heads: 4, kv_heads: 2, head_size: 8, window: None };

/// One that needs several parts: each of its two heads of keys has 80,200 pairs for each of two queries.
const LONG: usize = 400;

/// Values without a pattern.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

struct World {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    gradient: Vec<f32>,
    lengths: Vec<usize>,
}

impl World {
    fn new(lengths: &[usize]) -> Self {
        let tokens: usize = lengths.iter().sum();
        let wide = tokens * SHAPE.heads * SHAPE.head_size;
        let narrow = tokens * SHAPE.kv_heads * SHAPE.head_size;
        Self {
            queries: values(wide, 1),
            keys: values(narrow, 2),
            values: values(narrow, 3),
            gradient: values(wide, 4),
            lengths: lengths.to_vec(),
        }
    }

    /// The last sequence alone.
    fn last(&self) -> Self {
        let length = *self.lengths.last().unwrap();
        let end = |values: &[f32], width: usize| {
            values[values.len() - length * width * SHAPE.head_size..].to_vec()
        };
        Self {
            queries: end(&self.queries, SHAPE.heads),
            keys: end(&self.keys, SHAPE.kv_heads),
            values: end(&self.values, SHAPE.kv_heads),
            gradient: end(&self.gradient, SHAPE.heads),
            lengths: vec![length],
        }
    }

    fn attended(&self) -> Attended<'_> {
        let Self { queries, keys, values, lengths, .. } = self;
        Attended { shape: SHAPE, queries, keys, values, lengths }
    }

    /// What comes forward and back, in bits, and the pauses of both ways.
    fn run(&self) -> ([Vec<u32>; 4], [usize; 2]) {
        let pauses = Cell::new(0);
        let count = || pauses.set(pauses.get() + 1);
        let output = self.attended().forward(&count);
        let forward = pauses.replace(0);
        let Gradients { queries, keys, values } = self.attended().backward(&self.gradient, &count);
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        ([output, queries, keys, values].map(bits), [forward, pauses.get()])
    }
}

#[test]
fn a_long_sequence_is_done_in_parts_that_change_no_bit() {
    let together = World::new(&[3, LONG]);
    let (all, _) = together.run();
    let (alone, pauses) = together.last().run();
    for (all, alone) in all.iter().zip(&alone) {
        assert_eq!(all[all.len() - alone.len()..], alone[..]);
    }
    // Each thread takes as many pairs between two pauses, and there is at most one for each head of keys.
    let pairs = 2 * LONG * (LONG + 1) / 2;
    let least = pairs / (PAUSE_PAIRS + LONG);
    assert!(pauses.iter().all(|count| *count >= least), "{pauses:?}, not {least} each");

    // Without an end to a part the same bits come.
    let attended = together.attended();
    let rows = 3..3 + LONG;
    for kv_head in 0..SHAPE.kv_heads {
        let mut work =
            Back::begin(Part { of: attended, rows: rows.clone(), kv_head }, &together.gradient);
        while work.next_row().is_some() {}
        let mut expected = vec![0.0; together.keys.len()];
        work.part.scatter(&work.of_keys, SHAPE.kv_heads, kv_head, &mut expected);
        let of_head = |index: usize| index / SHAPE.head_size % SHAPE.kv_heads == kv_head;
        let first = rows.start * SHAPE.kv_heads * SHAPE.head_size;
        for index in (first..expected.len()).filter(|index| of_head(*index)) {
            assert_eq!(expected[index].to_bits(), all[2][index], "{index}");
        }
    }
}
