//! What a page holds, in the type that its session asked for.

use std::sync::Arc;

use half::{bf16, f16};
use umbel_protocol::DType;

use super::PAGE_TOKENS;
use super::slots::{Slot, Slots};
use super::table::PageShape;
use crate::kernel::{KV_BLOCK_VALUES, KvPage, Side};
use crate::large_pages::LINE_BYTES;

/// The largest multiple of a scale, so that each value has an opposite.
const STEPS: f32 = 127.0;

/// Keys and values of [`PAGE_TOKENS`] positions, as [`KvPage`] has them: first the keys, then the
/// values, each from a cache line on.
#[derive(Debug, Clone)]
pub(super) struct Page {
    shape: PageShape,
    dtype: DType,
    slot: Slot,
}

/// The keys or the values of a page, to be written.
enum SideMut<'a> {
    Binary32(&'a mut [f32]),
    Binary16(&'a mut [f16]),
    Bfloat16(&'a mut [bf16]),
    Bytes { quants: &'a mut [i8], scales: &'a mut [f16] },
}

/// Where the values of one head of one token go.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The first of them.
    start: usize,
    /// From one to the next.
    step: usize,
    /// The first of their scales, if they have some; the next are [`PAGE_TOKENS`] apart.
    scale: usize,
}

impl Page {
    /// Zeros.
    pub(super) fn zeroed(slots: &Arc<Slots>, shape: PageShape, dtype: DType) -> Self {
        let bytes = 2 * side_bytes(shape, dtype).next_multiple_of(LINE_BYTES);
        Self { shape, dtype, slot: slots.take(bytes) }
    }

    /// What a page takes: as many bytes as a session is promised for it.
    pub(super) fn bytes(shape: PageShape, dtype: DType) -> usize {
        side_bytes(shape, dtype).saturating_mul(2)
    }

    /// Writes one token, `[kv_heads, head_size]` of each, at its place in the page.
    pub(super) fn write(&mut self, slot: usize, keys: &[f32], values: &[f32]) {
        let (shape, dtype) = (self.shape, self.dtype);
        let bytes = self.slot.bytes_mut();
        let (first, second) = bytes.split_at_mut(bytes.len() / 2);
        let mut key_side = SideMut::of(first, shape, dtype);
        let mut value_side = SideMut::of(second, shape, dtype);
        let heads = keys.chunks_exact(shape.head_size).zip(values.chunks_exact(shape.head_size));
        for (head, (key, value)) in heads.enumerate() {
            let blocks = shape.head_size.div_ceil(KV_BLOCK_VALUES);
            let scale = head * blocks * PAGE_TOKENS + slot;
            let (start, step) = (shape.key(head, slot), PAGE_TOKENS);
            key_side.write(Place { start, step, scale }, key);
            let start = shape.value(head, slot).start;
            value_side.write(Place { start, step: 1, scale }, value);
        }
    }

    /// For the kernels.
    pub(super) fn view(&self) -> KvPage<'_> {
        let (shape, dtype) = (self.shape, self.dtype);
        let (keys, values) = self.slot.bytes().split_at(self.slot.bytes().len() / 2);
        KvPage { keys: side(keys, shape, dtype), values: side(values, shape, dtype) }
    }
}

/// What the keys of a page take, or its values.
fn side_bytes(shape: PageShape, dtype: DType) -> usize {
    let head = dtype.row_bytes(u32::try_from(shape.head_size).unwrap_or(u32::MAX));
    let heads = shape.kv_heads * PAGE_TOKENS;
    usize::try_from(head).unwrap_or(usize::MAX).saturating_mul(heads)
}

/// The values of a side.
const fn count(shape: PageShape) -> usize {
    shape.kv_heads * PAGE_TOKENS * shape.head_size
}

/// The scales of a side in 8 bits.
const fn scale_count(shape: PageShape) -> usize {
    shape.kv_heads * PAGE_TOKENS * shape.head_size.div_ceil(KV_BLOCK_VALUES)
}

/// What lies in the bytes of a side, and a little of what is behind it.
fn side(bytes: &[u8], shape: PageShape, dtype: DType) -> Side<'_> {
    let count = count(shape);
    match dtype {
        // Ids are no numbers, and nobody asks for them: the widest type is right for anything.
        DType::F32 | DType::Id => Side::Binary32(bytemuck::cast_slice(&bytes[..4 * count])),
        DType::F16 => Side::Binary16(bytemuck::cast_slice(&bytes[..2 * count])),
        DType::BF16 => Side::Bfloat16(bytemuck::cast_slice(&bytes[..2 * count])),
        DType::Q8 => {
            let (quants, scales) = bytes.split_at(count);
            let scales = &scales[..2 * scale_count(shape)];
            Side::Bytes {
                quants: bytemuck::cast_slice(quants),
                scales: bytemuck::cast_slice(scales),
            }
        }
    }
}

impl<'a> SideMut<'a> {
    /// As [`side`].
    fn of(bytes: &'a mut [u8], shape: PageShape, dtype: DType) -> Self {
        let count = count(shape);
        match dtype {
            DType::F32 | DType::Id => {
                Self::Binary32(bytemuck::cast_slice_mut(&mut bytes[..4 * count]))
            }
            DType::F16 => Self::Binary16(bytemuck::cast_slice_mut(&mut bytes[..2 * count])),
            DType::BF16 => Self::Bfloat16(bytemuck::cast_slice_mut(&mut bytes[..2 * count])),
            DType::Q8 => {
                let (quants, scales) = bytes.split_at_mut(count);
                let scales = &mut scales[..2 * scale_count(shape)];
                Self::Bytes {
                    quants: bytemuck::cast_slice_mut(quants),
                    scales: bytemuck::cast_slice_mut(scales),
                }
            }
        }
    }

    fn write(&mut self, place: Place, from: &[f32]) {
        let Place { start, step, scale } = place;
        match self {
            Self::Binary32(to) => put(&mut to[start..], step, from, |value| value),
            // What is beyond the type becomes the largest that it has, as on the wire: attention to
            // an infinity is no number.
            Self::Binary16(to) => put(&mut to[start..], step, from, |value| {
                f16::from_f32(value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
            }),
            Self::Bfloat16(to) => put(&mut to[start..], step, from, |value| {
                bf16::from_f32(value.clamp(bf16::MIN.to_f32(), bf16::MAX.to_f32()))
            }),
            Self::Bytes { quants, scales } => {
                for (block, from) in from.chunks(KV_BLOCK_VALUES).enumerate() {
                    let largest = from.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                    // A scale alike, and a block whose scale vanishes becomes zeros.
                    let step_size = f16::from_f32((largest / STEPS).min(f16::MAX.to_f32()));
                    scales[scale + block * PAGE_TOKENS] = step_size;
                    let size = step_size.to_f32();
                    let inverse = if size > 0.0 { 1.0 / size } else { 0.0 };
                    let to = &mut quants[start + block * KV_BLOCK_VALUES * step..];
                    put(to, step, from, |value| quant(value * inverse));
                }
            }
        }
    }
}

/// The nearest integer; what is no number becomes zero.
#[expect(clippy::cast_possible_truncation, reason = "it is between -127 and 127")]
fn quant(value: f32) -> i8 {
    value.round_ties_even().clamp(-STEPS, STEPS) as i8
}

fn put<T>(to: &mut [T], step: usize, from: &[f32], round: impl Fn(f32) -> T) {
    to.iter_mut().step_by(step).zip(from).for_each(|(to, from)| *to = round(*from));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: PageShape = PageShape { kv_heads: 2, head_size: 40 };

    /// The values of a head, block by block of different sizes, with a sign that says which side.
    fn token(slot: usize, sign: f32) -> Vec<f32> {
        let value = |index: usize| {
            let size = [1.0, 100.0, 0.01][index / KV_BLOCK_VALUES % 3];
            sign * size * ((index * 7 + slot * 13) % 31) as f32 / 31.0
        };
        (0..SHAPE.kv_heads * SHAPE.head_size).map(value).collect()
    }

    /// What a page says of one value of a head.
    fn read(side: Side<'_>, place: usize, scale: usize) -> f32 {
        match side {
            Side::Binary32(values) => values[place],
            Side::Binary16(values) => values[place].to_f32(),
            Side::Bfloat16(values) => values[place].to_f32(),
            Side::Bytes { quants, scales } => f32::from(quants[place]) * scales[scale].to_f32(),
        }
    }

    #[test]
    fn each_value_is_as_near_as_its_type_allows() {
        for dtype in DType::ALL {
            let mut page = Page::zeroed(&Arc::default(), SHAPE, dtype);
            for slot in 0..PAGE_TOKENS {
                page.write(slot, &token(slot, 1.0), &token(slot, -1.0));
            }
            let KvPage { keys, values } = page.view();
            for slot in 0..PAGE_TOKENS {
                for head in 0..SHAPE.kv_heads {
                    let of_head = head * SHAPE.head_size..(head + 1) * SHAPE.head_size;
                    let expected = &token(slot, 1.0)[of_head];
                    for (index, &value) in expected.iter().enumerate() {
                        let block = index / KV_BLOCK_VALUES;
                        let of_block = expected.chunks(KV_BLOCK_VALUES).nth(block).unwrap();
                        let most = of_block.iter().copied().fold(0.0, f32::max);
                        let bound = dtype.error_max(value, most);
                        let scale = (head * 2 + block) * PAGE_TOKENS + slot;
                        let key = read(keys, SHAPE.key(head, slot) + index * PAGE_TOKENS, scale);
                        assert!((key - value).abs() <= bound, "{dtype} {key} {value}");
                        let found = read(values, SHAPE.value(head, slot).start + index, scale);
                        assert!((found + value).abs() <= bound, "{dtype} {found} {value}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_or_beyond_the_type_harms_nothing_else() {
        let mut page = Page::zeroed(&Arc::default(), SHAPE, DType::Q8);
        let mut wild = token(3, 1.0);
        wild[0] = f32::INFINITY;
        wild[1] = f32::NAN;
        page.write(3, &wild, &wild);
        let KvPage { keys: Side::Bytes { quants, scales }, .. } = page.view() else {
            panic!("it was asked for bytes");
        };
        assert_eq!(scales[3], f16::MAX);
        assert_eq!((quants[SHAPE.key(0, 3)], quants[SHAPE.key(0, 3) + PAGE_TOKENS]), (127, 0));
        assert!(scales.iter().all(|scale| scale.is_finite()));
    }

    #[test]
    fn what_is_beyond_a_narrow_type_becomes_the_largest_that_it_has() {
        for (dtype, largest) in [(DType::F16, f16::MAX.to_f32()), (DType::BF16, bf16::MAX.to_f32())]
        {
            let mut page = Page::zeroed(&Arc::default(), SHAPE, dtype);
            let mut wild = token(3, 1.0);
            wild[..4].copy_from_slice(&[f32::MAX, f32::MIN, f32::INFINITY, f32::NAN]);
            page.write(3, &wild, &wild);
            let KvPage { keys, values } = page.view();
            let key = |index: usize| read(keys, SHAPE.key(0, 3) + index * PAGE_TOKENS, 0);
            let value = |index: usize| read(values, SHAPE.value(0, 3).start + index, 0);
            for (index, expected) in [largest, -largest, largest].into_iter().enumerate() {
                assert_eq!((key(index), value(index)), (expected, expected), "{dtype}");
            }
            assert!(key(3).is_nan() && value(3).is_nan(), "{dtype}: what is none shows");
        }
    }

    #[test]
    fn a_page_takes_what_was_promised_for_it() {
        for dtype in DType::ALL {
            let of = |side: Side<'_>| match side {
                Side::Binary32(values) => size_of_val(values),
                Side::Binary16(values) => size_of_val(values),
                Side::Bfloat16(values) => size_of_val(values),
                Side::Bytes { quants, scales } => size_of_val(quants) + size_of_val(scales),
            };
            let page = Page::zeroed(&Arc::default(), SHAPE, dtype);
            let KvPage { keys, values } = page.view();
            assert_eq!(of(keys) + of(values), Page::bytes(SHAPE, dtype), "{dtype}");
        }
    }
}
