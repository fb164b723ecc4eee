//! Pages of keys and values, and how those in narrower types become binary32.
//!
//! A narrow page takes a half or a quarter of the memory and of the time to read it. The kernels know
//! binary32 alone: a head of a page is widened when a tile comes to it, into 8 KiB or so that stay in
//! the first-level cache while the rows of the tile pass over it.

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};

use super::PAGE_TOKENS;
use crate::kernel::InstructionSet;

/// Values of a head of one token that share a scale in 8 bits; the last of a head are what is left.
pub const BLOCK_VALUES: usize = 32;

/// The keys or the values of a page, or one head of them.
#[derive(Debug, Clone, Copy)]
pub enum Side<'a> {
    /// As they were computed.
    Binary32(&'a [f32]),
    /// Rounded to binary16.
    Binary16(&'a [f16]),
    /// Rounded to bfloat16.
    Bfloat16(&'a [bf16]),
    /// Multiples of a scale.
    Bytes {
        /// In the places of the values.
        quants: &'a [i8],
        /// For each head `[blocks of a head, PAGE_TOKENS]`.
        scales: &'a [f16],
    },
}

/// A page of one session in one block.
#[derive(Debug, Clone, Copy)]
pub struct KvPage<'a> {
    /// `[kv_heads, head_size, PAGE_TOKENS]`, so that the scores of a page are computed side by side.
    pub keys: Side<'a>,
    /// `[kv_heads, PAGE_TOKENS, head_size]`.
    pub values: Side<'a>,
}

/// Room for a head of a page.
#[derive(Debug, Default)]
pub(super) struct Room {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// How the values of a head lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernel) enum Order {
    /// Those of all tokens side by side.
    Keys,
    /// Those of one token side by side.
    Values,
}

impl<'a> KvPage<'a> {
    /// The keys and values of head `index`.
    pub(super) fn head(self, index: usize, head_size: usize) -> Self {
        Self { keys: self.keys.head(index, head_size), values: self.values.head(index, head_size) }
    }

    /// Both in binary32, where they are so already.
    pub(super) const fn binary32(self) -> Option<(&'a [f32], &'a [f32])> {
        match (self.keys, self.values) {
            (Side::Binary32(keys), Side::Binary32(values)) => Some((keys, values)),
            _ => None,
        }
    }

    /// Both of a head in binary32.
    pub(super) fn widened<'b>(
        self,
        set: InstructionSet,
        room: &'b mut Room,
    ) -> (&'b [f32], &'b [f32])
    where
        'a: 'b,
    {
        let Room { keys, values } = room;
        (self.keys.widened(set, Order::Keys, keys), self.values.widened(set, Order::Values, values))
    }
}

impl<'a> Side<'a> {
    fn head(self, index: usize, head_size: usize) -> Self {
        let count = PAGE_TOKENS * head_size;
        let place = index * count..(index + 1) * count;
        match self {
            Side::Binary32(values) => Side::Binary32(&values[place]),
            Side::Binary16(values) => Side::Binary16(&values[place]),
            Side::Bfloat16(values) => Side::Bfloat16(&values[place]),
            Side::Bytes { quants, scales } => {
                let count = PAGE_TOKENS * head_size.div_ceil(BLOCK_VALUES);
                let scales = &scales[index * count..(index + 1) * count];
                Side::Bytes { quants: &quants[place], scales }
            }
        }
    }

    fn widened<'b>(self, set: InstructionSet, order: Order, room: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Side::Binary32(values) => return values,
            Side::Binary16(values) => {
                room.resize(values.len(), 0.0);
                values.convert_to_f32_slice(room);
            }
            Side::Bfloat16(values) => {
                room.resize(values.len(), 0.0);
                Widening::Bfloat16(values).run(set, room);
            }
            Side::Bytes { quants, scales } => {
                room.resize(quants.len(), 0.0);
                let mut wide = vec![0.0; scales.len()];
                scales.convert_to_f32_slice(&mut wide);
                Widening::Bytes { quants, scales: &wide, order }.run(set, room);
            }
        }
        room
    }
}

/// A loop that is compiled for each set of instructions.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernel) enum Widening<'a> {
    Bfloat16(&'a [bf16]),
    Bytes { quants: &'a [i8], scales: &'a [f32], order: Order },
}

impl Widening<'_> {
    fn run(self, set: InstructionSet, room: &mut [f32]) {
        match set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512(avx512) => avx512.avx2().widen(self, room),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2(avx2) => avx2.widen(self, room),
            _ => self.portable(room),
        }
    }

    /// The loops; what calls them says for which instructions.
    #[inline(always)]
    pub(in crate::kernel) fn portable(self, room: &mut [f32]) {
        match self {
            Widening::Bfloat16(values) => {
                for (wide, value) in room.iter_mut().zip(values) {
                    *wide = f32::from_bits(u32::from(value.to_bits()) << 16);
                }
            }
            Widening::Bytes { quants, scales, order: Order::Keys } => {
                let rows = room.as_chunks_mut::<PAGE_TOKENS>().0.iter_mut();
                let quants = quants.as_chunks::<PAGE_TOKENS>().0;
                let scales = scales.as_chunks::<PAGE_TOKENS>().0;
                for (index, (wide, quants)) in rows.zip(quants).enumerate() {
                    let scales = &scales[index / BLOCK_VALUES];
                    for slot in 0..PAGE_TOKENS {
                        wide[slot] = f32::from(quants[slot]) * scales[slot];
                    }
                }
            }
            Widening::Bytes { quants, scales, order: Order::Values } => {
                let head_size = room.len() / PAGE_TOKENS;
                let tokens = room.chunks_exact_mut(head_size).zip(quants.chunks_exact(head_size));
                for (slot, (wide, quants)) in tokens.enumerate() {
                    let blocks = wide.chunks_mut(BLOCK_VALUES).zip(quants.chunks(BLOCK_VALUES));
                    for (block, (wide, quants)) in blocks.enumerate() {
                        let scale = scales[block * PAGE_TOKENS + slot];
                        for (wide, quant) in wide.iter_mut().zip(quants) {
                            *wide = f32::from(*quant) * scale;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::specimen::Numbers;

    /// More than a block, and no whole number of them.
    const HEAD_SIZE: usize = 48;
    const HEADS: usize = 3;
    const COUNT: usize = PAGE_TOKENS * HEAD_SIZE;
    const BLOCKS: usize = HEAD_SIZE.div_ceil(BLOCK_VALUES);

    /// What is said of value `index` of the token at `slot`, of a head.
    fn scale(scales: &[f16], head: usize, slot: usize, index: usize) -> f32 {
        scales[(head * BLOCKS + index / BLOCK_VALUES) * PAGE_TOKENS + slot].to_f32()
    }

    #[test]
    fn every_set_of_instructions_widens_each_value_where_it_is() {
        let mut numbers = Numbers(5);
        let values = numbers.floats(HEADS * COUNT);
        let half: Vec<_> = values.iter().map(|value| f16::from_f32(*value)).collect();
        let brain: Vec<_> = values.iter().map(|value| bf16::from_f32(*value)).collect();
        let scales = numbers.floats(HEADS * BLOCKS * PAGE_TOKENS);
        let scales: Vec<_> = scales.iter().map(|value| f16::from_f32(*value)).collect();
        let quants: Vec<i8> = (0..HEADS * COUNT).map(|_| numbers.byte().cast_signed()).collect();
        for set in InstructionSet::all() {
            for head in 0..HEADS {
                let read = |side: Side<'_>| {
                    let mut room = Room::default();
                    let page = KvPage { keys: side, values: side }.head(head, HEAD_SIZE);
                    let (keys, values) = page.widened(set, &mut room);
                    (keys.to_vec(), values.to_vec())
                };
                let place = head * COUNT..(head + 1) * COUNT;
                let (keys, same) = read(Side::Binary32(&values));
                assert!(keys == values[place.clone()] && same == keys, "{set:?}");
                let expected: Vec<_> = half[place.clone()].iter().map(|v| v.to_f32()).collect();
                assert_eq!(read(Side::Binary16(&half)), (expected.clone(), expected), "{set:?}");
                let expected: Vec<_> = brain[place.clone()].iter().map(|v| v.to_f32()).collect();
                assert_eq!(read(Side::Bfloat16(&brain)), (expected.clone(), expected), "{set:?}");
                let (keys, tokens) = read(Side::Bytes { quants: &quants, scales: &scales });
                for (index, quant) in quants[place].iter().enumerate() {
                    let quant = f32::from(*quant);
                    let key = scale(&scales, head, index % PAGE_TOKENS, index / PAGE_TOKENS);
                    assert_eq!(keys[index].to_bits(), (quant * key).to_bits(), "{set:?}");
                    let value = scale(&scales, head, index / HEAD_SIZE, index % HEAD_SIZE);
                    assert_eq!(tokens[index].to_bits(), (quant * value).to_bits(), "{set:?}");
                }
            }
        }
    }
}
