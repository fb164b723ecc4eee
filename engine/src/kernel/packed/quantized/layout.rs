//! Where the bits of a panel are: 32 rows of weights, block by block of 32 columns.
//!
//! The rows are two *strips* of 16, and in each block the first strip comes before the second. The 32
//! columns of a block are 8 *quads* of 4. A quad of a strip is a line of 64 bytes with the 4 weights
//! of the first row, then those of the second, and so on: what an instruction that multiplies bytes
//! and adds four neighbours takes. Fewer bits than 8 are put together so that shifts and masks of
//! whole lines make quads of them:
//!
//! | type | lines of a block | factors of a block | of 256 columns |
//! |---|---|---|---|
//! | Q4_0 | 4: quad `i` in the lower halves of bytes, quad `i + 4` in the upper | scale | |
//! | Q4_1 | the same | scale, minimum | |
//! | Q5_0 | and 1: bit `i` of each byte is the fifth of quad `i` | scale | |
//! | Q5_1 | the same | scale, minimum | |
//! | Q8_0 | 8: quad `i` | scale | |
//! | Q4_K | as Q4_0 | 16 integer scales, 16 integer minima | scale, factor of minima |
//! | Q5_K | as Q5_0 | the same | the same |
//! | Q6_K | as Q4_0, and 2: bits 5 and 6, of quads 0 to 3 and 4 to 7 | integer scales of the first 16 columns, of the last | scale |
//!
//! Scales and minima are binary16, one for each row; 16 of them are half a line.

use bytemuck::{Pod, Zeroable};
use umbel_shard::WeightType;

use crate::kernel::format::{self, BLOCK_VALUES, Block, GROUPS, SUPER_VALUES, SuperBlock};

/// Rows of a strip: the lanes of 32 bits in an AVX-512 register.
pub(in crate::kernel) const STRIP_ROWS: usize = 16;

/// Strips of a panel: as many as share what is loaded of the activations.
pub(in crate::kernel) const STRIPS: usize = 2;

/// Rows of a panel.
pub(in crate::kernel) const PANEL_ROWS: usize = STRIPS * STRIP_ROWS;

/// Quads of a block.
pub(in crate::kernel) const QUADS: usize = BLOCK_VALUES / 4;

/// Blocks of 32 columns in a block of a K-quant.
pub(in crate::kernel) const SUPER_BLOCKS: usize = SUPER_VALUES / BLOCK_VALUES;

/// Bytes that fill a register of AVX-512, aligned as a cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub(in crate::kernel) struct Line(pub(in crate::kernel) [u8; 64]);

/// 16 numbers in binary16, or twice 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::kernel) struct HalfLine(pub(in crate::kernel) [u8; 32]);

impl HalfLine {
    pub(super) const ZERO: Self = Self([0; 32]);

    /// The first 16 bytes and the last.
    #[inline(always)]
    pub(in crate::kernel) fn halves(&self) -> [&[u8; STRIP_ROWS]; 2] {
        let (first, last) = self.0.split_first_chunk().expect("there are twice as many bytes");
        [first, last.first_chunk().expect("there are twice as many bytes")]
    }
}

/// The weights of a block as they are multiplied, unsigned.
pub(in crate::kernel) type Quads = [[u8; 64]; QUADS];

/// How much a type takes, and where its zero is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernel) struct Form {
    lines: usize,
    factors: usize,
    supers: usize,
    /// What the packed integers are above those that they stand for.
    pub(in crate::kernel) zero: u8,
}

impl Form {
    pub(in crate::kernel) const fn of(kind: WeightType) -> Self {
        match kind {
            WeightType::Q4_0 => Self::new(4, 1, 0, 8),
            WeightType::Q4_1 => Self::new(4, 2, 0, 0),
            WeightType::Q5_0 => Self::new(5, 1, 0, 16),
            WeightType::Q5_1 => Self::new(5, 2, 0, 0),
            WeightType::Q8_0 => Self::new(8, 1, 0, 128),
            WeightType::Q4K => Self::new(4, 1, 2, 0),
            WeightType::Q5K => Self::new(5, 1, 2, 0),
            WeightType::Q6K => Self::new(6, 1, 1, 32),
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
                panic!("weights in floating point are not packed as integers")
            }
        }
    }

    const fn new(lines: usize, factors: usize, supers: usize, zero: u8) -> Self {
        Self { lines, factors, supers, zero }
    }

    /// Lines of quants, factors and factors of 256 columns in a panel.
    pub(super) const fn panel_sizes(self, columns: usize) -> [usize; 3] {
        let blocks = columns / BLOCK_VALUES * STRIPS;
        [blocks * self.lines, blocks * self.factors, blocks / SUPER_BLOCKS * self.supers]
    }
}

/// Packs up to 32 rows; where there are fewer, the rest stay zeros.
pub(super) fn pack(
    kind: WeightType,
    row_bytes: usize,
    bytes: &[u8],
    quants: &mut [Line],
    factors: &mut [HalfLine],
    supers: &mut [HalfLine],
) {
    let form = Form::of(kind);
    let unit_blocks = kind.block_values() / BLOCK_VALUES;
    let mut of_block = [HalfLine::ZERO; SUPER_BLOCKS * 2];
    for (strip, bytes) in bytes.chunks(STRIP_ROWS * row_bytes).enumerate() {
        for unit in 0..row_bytes / kind.block_bytes() {
            let mut quads = [[[0; 64]; QUADS]; SUPER_BLOCKS];
            let supers = &mut supers[(unit * STRIPS + strip) * form.supers..][..form.supers];
            let unit_factors = &mut of_block[..unit_blocks * form.factors];
            for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
                let bytes = &bytes[unit * kind.block_bytes()..][..kind.block_bytes()];
                let mut values = [0; SUPER_VALUES];
                read(kind, row, bytes, &mut values, unit_factors, supers);
                for (value, index) in values[..kind.block_values()].iter().zip(0..) {
                    let (block, column) = (index / BLOCK_VALUES, index % BLOCK_VALUES);
                    quads[block][column / 4][row * 4 + column % 4] = *value;
                }
            }
            for (block, quads) in quads[..unit_blocks].iter().enumerate() {
                let place = (unit * unit_blocks + block) * STRIPS + strip;
                put_together(kind, quads, &mut quants[place * form.lines..][..form.lines]);
                factors[place * form.factors..][..form.factors]
                    .copy_from_slice(&unit_factors[block * form.factors..][..form.factors]);
            }
            unit_factors.fill(HalfLine::ZERO);
        }
    }
}

/// Reads one block of the file: its weights, from zero on, and its factors, to their places.
fn read(
    kind: WeightType,
    row: usize,
    bytes: &[u8],
    values: &mut [u8; SUPER_VALUES],
    factors: &mut [HalfLine],
    supers: &mut [HalfLine],
) {
    let unsigned = |value: i8| value.cast_unsigned().wrapping_add(Form::of(kind).zero);
    let mut block = |block: Block| {
        values.iter_mut().zip(block.values).for_each(|(to, value)| *to = unsigned(value));
        for (half, factors) in factors.iter_mut().enumerate() {
            put_binary16(factors, row, &bytes[half * 2..]);
        }
        None
    };
    let super_block: Option<SuperBlock> = match kind {
        WeightType::Q4_0 => block(format::q4_0(whole(bytes))),
        WeightType::Q4_1 => block(format::q4_1(whole(bytes))),
        WeightType::Q5_0 => block(format::q5_0(whole(bytes))),
        WeightType::Q5_1 => block(format::q5_1(whole(bytes))),
        WeightType::Q8_0 => block(format::q8_0(whole(bytes))),
        WeightType::Q4K => Some(format::q4_k(whole(bytes))),
        WeightType::Q5K => Some(format::q5_k(whole(bytes))),
        WeightType::Q6K => Some(format::q6_k(whole(bytes))),
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => unreachable!("see `Form::of`"),
    };
    let Some(block) = super_block else { return };
    *values = block.values.map(unsigned);
    let last = kind == WeightType::Q6K;
    // In the file of Q6_K the scale stands at the end; the others begin with two factors.
    let start = if last { bytes.len() - 2 } else { 0 };
    for (half, supers) in supers.iter_mut().enumerate() {
        put_binary16(supers, row, &bytes[start + half * 2..]);
    }
    for (group, factors) in (0..GROUPS).step_by(2).zip(factors) {
        let second = if last { block.scales[group + 1] } else { block.minimums[group] };
        factors.0[row] = block.scales[group].cast_unsigned();
        factors.0[STRIP_ROWS + row] = second.cast_unsigned();
    }
}

/// The bytes of one block as an array.
fn whole<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.try_into().expect("a block has as many bytes as its type says")
}

fn put_binary16(factors: &mut HalfLine, row: usize, bytes: &[u8]) {
    factors.0[row * 2..][..2].copy_from_slice(&bytes[..2]);
}

/// Puts the quads of a block into its lines.
fn put_together(kind: WeightType, quads: &Quads, lines: &mut [Line]) {
    if kind == WeightType::Q8_0 {
        lines.iter_mut().zip(quads).for_each(|(line, quad)| line.0 = *quad);
        return;
    }
    for (quad, values) in quads.iter().enumerate() {
        for (byte, &value) in values.iter().enumerate() {
            lines[quad % 4].0[byte] |= (value & 0xf) << (quad / 4 * 4);
            match kind {
                WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q5K => {
                    lines[4].0[byte] |= value >> 4 << quad;
                }
                WeightType::Q6K => lines[4 + quad / 4].0[byte] |= value >> 4 << (quad % 4 * 2),
                WeightType::Q4_0 | WeightType::Q4_1 | WeightType::Q4K => {}
                WeightType::Q8_0 | WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
                    unreachable!("a type of 8 bits or without blocks")
                }
            }
        }
    }
}

/// The quads of a block from its lines, for machines without wider instructions for it.
#[inline(always)]
pub(in crate::kernel) fn quads(kind: WeightType, lines: &[Line]) -> Quads {
    let mut quads = [[0; 64]; QUADS];
    for (quad, values) in quads.iter_mut().enumerate() {
        let halves = &lines[if kind == WeightType::Q8_0 { quad } else { quad % 4 }].0;
        match kind {
            WeightType::Q8_0 => *values = *halves,
            WeightType::Q4_0 | WeightType::Q4_1 | WeightType::Q4K => {
                *values = halves.map(|halves| halves >> (quad / 4 * 4) & 0xf);
            }
            WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q5K => {
                for ((value, halves), fifth) in values.iter_mut().zip(halves).zip(lines[4].0) {
                    *value = halves >> (quad / 4 * 4) & 0xf | (fifth >> quad & 1) << 4;
                }
            }
            WeightType::Q6K => {
                let upper = lines[4 + quad / 4].0;
                for ((value, halves), upper) in values.iter_mut().zip(halves).zip(upper) {
                    *value = halves >> (quad / 4 * 4) & 0xf | (upper >> (quad % 4 * 2) & 3) << 4;
                }
            }
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
                unreachable!("see `Form::of`")
            }
        }
    }
    quads
}
