//! How a matrix lies in a device's memory: cells of 16 rows and 32 columns, packed here and unpacked by
//! the kernels, as `cuda/layout.cuh` and `cuda/formats.cuh` say.

use half::bf16;
#[cfg(test)]
use half::f16;
use umbel_shard::{Weight, WeightType};

use crate::kernel::{NumberGroup, dequantize_row, number_groups, parallel};

/// Rows of a cell.
pub(super) const CELL_ROWS: usize = 16;

/// Columns of a cell.
pub(super) const CELL_COLUMNS: usize = 32;

/// Columns of a quantized group: two are a row of a cell.
const GROUP_COLUMNS: usize = 16;

/// What scales and offsets are multiplied with in a cell: the kernels take a number's bits for a bfloat16,
/// which is 2^-133 times the number, and make values that are 2^-32 times as large as they are.
const SCALE_FACTOR: f32 = exponent(133 - 32);
const OFFSET_FACTOR: f32 = exponent(-32);

/// 2 to the power of `power`, a normal number.
const fn exponent(power: i32) -> f32 {
    f32::from_bits(((127 + power) as u32) << 23)
}

/// What the cells of a matrix hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Format {
    Bf16,
    F16,
    /// 4 bits about 8, with a scale.
    Q4Symmetric,
    /// 4 bits from 0 on, with scale and offset.
    Q4Affine,
    /// 5 bits about 16, with a scale.
    Q5Symmetric,
    /// 5 bits from 0 on, with scale and offset.
    Q5Affine,
    /// 6 bits about 32, with a scale for each 16 columns.
    Q6,
    /// 8 bits about 0, with a scale.
    Q8,
}

impl Format {
    /// What keeps the values of `kind`; weights in binary32 among narrower ones are rounded.
    pub(super) const fn of(kind: WeightType) -> Self {
        match kind {
            WeightType::F32 | WeightType::BF16 => Self::Bf16,
            WeightType::F16 => Self::F16,
            WeightType::Q4_0 => Self::Q4Symmetric,
            WeightType::Q4_1 | WeightType::Q4K => Self::Q4Affine,
            WeightType::Q5_0 => Self::Q5Symmetric,
            WeightType::Q5_1 | WeightType::Q5K => Self::Q5Affine,
            WeightType::Q6K => Self::Q6,
            WeightType::Q8_0 => Self::Q8,
        }
    }

    /// As the kernels are called.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q4Symmetric => "q4_symmetric",
            Self::Q4Affine => "q4_affine",
            Self::Q5Symmetric => "q5_symmetric",
            Self::Q5Affine => "q5_affine",
            Self::Q6 => "q6",
            Self::Q8 => "q8",
        }
    }

    /// Whether values stand for themselves.
    const fn is_float(self) -> bool {
        matches!(self, Self::Bf16 | Self::F16)
    }

    /// What the kernels multiply the numbers of a cell's rows from 8 on with: they leave those of 4 bits
    /// where they are in their byte.
    const fn lower_rows_factor(self) -> f32 {
        match self {
            Self::Q4Symmetric | Self::Q4Affine => 16.0,
            Self::Bf16 | Self::F16 | Self::Q5Symmetric | Self::Q5Affine | Self::Q6 | Self::Q8 => {
                1.0
            }
        }
    }

    /// Bytes of a cell.
    pub(super) const fn cell_bytes(self) -> usize {
        let numbers = CELL_ROWS * CELL_COLUMNS;
        match self {
            Self::Bf16 | Self::F16 => numbers * 2,
            Self::Q8 => numbers + CELL_ROWS * 2,
            Self::Q4Symmetric | Self::Q5Symmetric => {
                numbers / 2 + self.plane_bytes() + CELL_ROWS * 2
            }
            Self::Q4Affine | Self::Q5Affine | Self::Q6 => {
                numbers / 2 + self.plane_bytes() + CELL_ROWS * 4
            }
        }
    }

    /// Bytes of the bits beyond the fourth.
    const fn plane_bytes(self) -> usize {
        match self {
            Self::Q5Symmetric | Self::Q5Affine => CELL_ROWS * CELL_COLUMNS / 8,
            Self::Q6 => CELL_ROWS * CELL_COLUMNS / 4,
            Self::Bf16 | Self::F16 | Self::Q4Symmetric | Self::Q4Affine | Self::Q8 => 0,
        }
    }

    /// What is added to a number, so that all are from 0 on.
    const fn centre(self) -> i16 {
        match self {
            Self::Q4Symmetric => 8,
            Self::Q5Symmetric => 16,
            Self::Q6 => 32,
            Self::Q8 => 128,
            Self::Bf16 | Self::F16 | Self::Q4Affine | Self::Q5Affine => 0,
        }
    }
}

/// A row of a matrix that is packed: of which weight, and the row there. `None` is a row of zeros.
pub(super) type Source<'a> = Option<(&'a Weight, usize)>;

/// Bytes of the cells of so many rows and columns.
pub(super) const fn packed_bytes(format: Format, rows: usize, columns: usize) -> usize {
    rows.div_ceil(CELL_ROWS) * columns.div_ceil(CELL_COLUMNS) * format.cell_bytes()
}

/// Packs rows, which have `columns` values each, in `format`.
pub(super) fn pack(format: Format, rows: &[Source<'_>], columns: usize) -> Vec<u8> {
    let mut packed = vec![0; packed_bytes(format, rows.len(), columns)];
    let tile_bytes = columns.div_ceil(CELL_COLUMNS) * format.cell_bytes();
    let tiles = rows.chunks(CELL_ROWS).zip(packed.chunks_mut(tile_bytes));
    parallel::for_each(tiles, |(rows, cells)| {
        for (row, source) in rows.iter().enumerate() {
            let Some((weight, index)) = source else {
                continue;
            };
            let bytes = &weight.bytes()[index * weight.row_bytes()..][..weight.row_bytes()];
            if format.is_float() {
                pack_floats(weight, row, bytes, cells);
            } else {
                pack_numbers(format, row, &number_groups(weight.weight_type(), bytes), cells);
            }
        }
    });
    packed
}

/// Where column `column` of a cell's row `row` lies: the lane, the pair of the lane's 8, and which of
/// the pair.
const fn place(row: usize, column: usize) -> (usize, usize, usize) {
    let lane = row % 8 * 4 + column % 8 / 2;
    let pair = column / 16 * 4 + column % 16 / 8 * 2 + row / 8;
    (lane, pair, column % 2)
}

fn pack_floats(weight: &Weight, row: usize, bytes: &[u8], cells: &mut [u8]) {
    let mut put = |column: usize, value: [u8; 2]| {
        let (lane, pair, second) = place(row, column % CELL_COLUMNS);
        // The words of each half of the columns, lane after lane.
        let word = pair / 4 * 128 + lane * 4 + pair % 4;
        let start = column / CELL_COLUMNS * Format::Bf16.cell_bytes() + word * 4 + second * 2;
        cells[start..start + 2].copy_from_slice(&value);
    };
    if matches!(weight.weight_type(), WeightType::BF16 | WeightType::F16) {
        bytes.as_chunks().0.iter().enumerate().for_each(|(at, value)| put(at, *value));
        return;
    }
    let mut values = vec![0.0; weight.columns()];
    dequantize_row(weight.weight_type(), bytes, &mut values);
    for (at, value) in values.into_iter().enumerate() {
        put(at, bf16::from_f32(value).to_le_bytes());
    }
}

fn pack_numbers(format: Format, row: usize, groups: &[NumberGroup], cells: &mut [u8]) {
    let cell_bytes = format.cell_bytes();
    for (group, cell) in
        groups.chunks(CELL_COLUMNS / GROUP_COLUMNS).zip(cells.chunks_mut(cell_bytes))
    {
        for (half, group) in group.iter().enumerate() {
            for (column, &number) in group.numbers.iter().enumerate() {
                let number = u8::try_from(i16::from(number) + format.centre())
                    .expect("numbers are above the least that their type has");
                put_number(format, cell, place(row, half * GROUP_COLUMNS + column), number);
            }
        }
        put_scales(format, row, group, cell);
    }
}

fn put_number(
    format: Format,
    cell: &mut [u8],
    (lane, pair, second): (usize, usize, usize),
    number: u8,
) {
    if format == Format::Q8 {
        cell[byte_of(lane, pair, second)] = number;
        return;
    }
    // Of a word of 32 bits the first of a pair has 4 bits in the lower half, the second in the upper.
    let nibble = pair % 4 + second * 4;
    cell[lane * 8 + pair / 4 * 4 + nibble / 2] |= (number & 0xf) << (nibble % 2 * 4);
    let (plane, above) = (CELL_ROWS * CELL_COLUMNS / 2, number >> 4);
    match format {
        Format::Q5Symmetric | Format::Q5Affine => cell[plane + lane * 2 + second] |= above << pair,
        Format::Q6 => {
            cell[plane + lane * 4 + second * 2 + pair / 4] |= above << (pair % 4 * 2);
        }
        Format::Bf16 | Format::F16 | Format::Q4Symmetric | Format::Q4Affine | Format::Q8 => {}
    }
}

/// Where a number of 8 bits lies: two pairs share a word, so that a mask takes one of them out.
const fn byte_of(lane: usize, pair: usize, second: usize) -> usize {
    lane * 16 + pair / 2 * 4 + second * 2 + pair % 2
}

fn put_scales(format: Format, row: usize, groups: &[NumberGroup], cell: &mut [u8]) {
    let start = cell.len() - if is_wide(format) { CELL_ROWS * 4 } else { CELL_ROWS * 2 };
    let (line, below) = (row % 8, row / 8);
    let scale_factor = SCALE_FACTOR / if below == 1 { format.lower_rows_factor() } else { 1.0 };
    // Factors are powers of two, so nothing is rounded a second time.
    let mut put = |index: usize, value: f32, factor: f32| {
        let value = bf16::from_f32(bf16::from_f32(value).to_f32() * factor).to_le_bytes();
        cell[start + index * 2..][..2].copy_from_slice(&value);
    };
    match format {
        Format::Q4Affine | Format::Q5Affine => {
            put(line * 4 + below * 2, groups[0].scale, scale_factor);
            put(line * 4 + below * 2 + 1, groups[0].offset, OFFSET_FACTOR);
        }
        Format::Q6 => {
            for (half, group) in groups.iter().enumerate() {
                put(line * 4 + half * 2 + below, group.scale, scale_factor);
            }
        }
        Format::Bf16 | Format::F16 | Format::Q4Symmetric | Format::Q5Symmetric | Format::Q8 => {
            put(line * 2 + below, groups[0].scale, scale_factor);
        }
    }
}

/// Whether a row has two factors in each cell.
const fn is_wide(format: Format) -> bool {
    matches!(format, Format::Q4Affine | Format::Q5Affine | Format::Q6)
}

/// What the kernels make of a packed matrix, value by value: their oracle in tests.
#[cfg(test)]
pub(super) fn unpacked(
    format: Format,
    cells: &[u8],
    row: usize,
    column: usize,
    columns: usize,
) -> f32 {
    let bf16_at = |bytes: &[u8]| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let tile = row / CELL_ROWS * columns.div_ceil(CELL_COLUMNS) + column / CELL_COLUMNS;
    let cell = &cells[tile * format.cell_bytes()..][..format.cell_bytes()];
    let (row, column) = (row % CELL_ROWS, column % CELL_COLUMNS);
    let (lane, pair, second) = place(row, column);
    let word = (pair / 4 * 128 + lane * 4 + pair % 4) * 4 + second * 2;
    if format == Format::Bf16 {
        return bf16_at(&cell[word..]);
    }
    if format == Format::F16 {
        return f16::from_le_bytes([cell[word], cell[word + 1]]).to_f32();
    }
    let (nibble, plane) = (pair % 4 + second * 4, &cell[CELL_ROWS * CELL_COLUMNS / 2..]);
    let low = cell[lane * 8 + pair / 4 * 4 + nibble / 2] >> (nibble % 2 * 4) & 0xf;
    let number = match format.plane_bytes() {
        64 => low | (plane[lane * 2 + second] >> pair & 1) << 4,
        128 => low | (plane[lane * 4 + second * 2 + pair / 4] >> (pair % 4 * 2) & 3) << 4,
        _ if format == Format::Q8 => cell[byte_of(lane, pair, second)],
        _ => low,
    };
    let start = cell.len() - if is_wide(format) { 64 } else { 32 };
    let (line, below) = (row % 8, row / 8);
    let lower = if below == 1 { format.lower_rows_factor() } else { 1.0 };
    let scale = |index: usize| bf16_at(&cell[start + index * 2..]) * lower / SCALE_FACTOR;
    let number = f32::from(i16::from(number) - format.centre());
    let value = if format == Format::Q6 {
        scale(line * 4 + column / 16 * 2 + below) * number
    } else if is_wide(format) {
        let offset = bf16_at(&cell[start + (line * 4 + below * 2 + 1) * 2..]) / OFFSET_FACTOR;
        scale(line * 4 + below * 2).mul_add(number, offset)
    } else {
        scale(line * 2 + below) * number
    };
    bf16::from_f32(value).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::specimen::{ALL_TYPES, Numbers, weights};

    /// Values survive but for the rounding of their scales and of themselves to 8 bits.
    #[test]
    fn packed_values_are_those_of_the_file() {
        let mut numbers = Numbers(7);
        for kind in ALL_TYPES {
            let columns = if kind.is_float() { 45 } else { 256 };
            let bytes = weights(kind, 37 * columns, &mut numbers);
            let mut expected = vec![0.0; 37 * columns];
            dequantize_row(kind, &bytes, &mut expected);
            let weight = Weight::new(kind, vec![37, columns], &bytes[..]).unwrap();
            let rows: Vec<Source<'_>> = (0..37).map(|row| Some((&weight, row))).collect();
            let format = Format::of(kind);
            let packed = pack(format, &rows, columns);
            for row in 0..37 {
                // Offsets and scaled numbers may cancel: what is lost is relative to the larger.
                let of_row = &expected[row * columns..][..columns];
                let most = of_row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                for (column, &value) in of_row.iter().enumerate() {
                    let found = unpacked(format, &packed, row, column, columns);
                    let allowed = most / if kind.is_float() { 255.0 } else { 50.0 };
                    assert!(
                        (found - value).abs() <= allowed,
                        "{kind} {row} {column}: {found} {value}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_that_are_not_there_are_zeros() {
        for kind in ALL_TYPES {
            let packed = pack(Format::of(kind), &[None; 3], 256);
            assert_eq!(unpacked(Format::of(kind), &packed, 1, 77, 256), 0.0, "{kind}");
        }
    }
}
