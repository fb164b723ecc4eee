//! The tiles of a thread.

use super::decode::{Instruction, Operands};
use super::start_address;

/// Rows of a tile register, and bytes of a row.
const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

/// Where a configuration says how long the rows of each tile are, and how many they are.
const ROW_BYTES_PLACE: usize = 16;
const ROWS_PLACE: usize = 48;

#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    row_bytes: usize,
    bytes: [[u8; ROW_BYTES]; ROWS],
}

pub(super) struct Tiles {
    tiles: [Tile; 8],
    products_done: usize,
}

impl Tile {
    const NONE: Self = Self { rows: 0, row_bytes: 0, bytes: [[0; ROW_BYTES]; ROWS] };

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.row_bytes)
    }
}

impl Tiles {
    pub(super) const RELEASED: Self = Self { tiles: [Tile::NONE; 8], products_done: 0 };

    pub(super) const fn products_done(&self) -> usize {
        self.products_done
    }

    /// `None` where the manual has an exception.
    ///
    /// # Safety
    /// The memory that `instruction` names may be read, or written.
    #[allow(unsafe_code, reason = "addresses come from registers")]
    pub(super) unsafe fn execute(&mut self, instruction: Instruction) -> Option<()> {
        match instruction {
            Instruction::Configure(address) => {
                let place = std::ptr::with_exposed_provenance::<[u8; 64]>(start_address(address));
                // SAFETY: the caller's promise.
                self.configure(&unsafe { place.read_unaligned() })
            }
            Instruction::Release => {
                self.tiles = Self::RELEASED.tiles;
                Some(())
            }
            Instruction::Zero(tile) => {
                self.configured(tile)?.bytes = Tile::NONE.bytes;
                Some(())
            }
            Instruction::Load { tile, address, stride } => {
                let tile = self.configured(tile)?;
                tile.bytes = Tile::NONE.bytes;
                for (row, bytes) in (0..).zip(&mut tile.bytes[..tile.rows]) {
                    let place = start_address(address.wrapping_add(stride.wrapping_mul(row)));
                    let place = std::ptr::with_exposed_provenance::<u8>(place);
                    // SAFETY: the caller's promise; a row has at most 64 bytes.
                    unsafe { place.copy_to_nonoverlapping(bytes.as_mut_ptr(), tile.row_bytes) };
                }
                Some(())
            }
            Instruction::Store { tile, address, stride } => {
                let tile = self.configured(tile)?;
                for (row, bytes) in (0..).zip(&tile.bytes[..tile.rows]) {
                    let place = start_address(address.wrapping_add(stride.wrapping_mul(row)));
                    let place = std::ptr::with_exposed_provenance_mut::<u8>(place);
                    // SAFETY: the caller's promise; a row has at most 64 bytes.
                    unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), tile.row_bytes) };
                }
                Some(())
            }
            Instruction::Bfloat16(operands) => {
                let (sum, left, right) = self.product(operands)?;
                // SAFETY: the emulator is installed where there is AVX-512, so with FMA.
                unsafe { bfloat16(sum, &left, &right) };
                Some(())
            }
            Instruction::SignedUnsigned(operands) => {
                let (sum, left, right) = self.product(operands)?;
                integers(sum, &left, &right);
                Some(())
            }
        }
    }

    /// Takes the shapes of all tiles, and clears them.
    fn configure(&mut self, bytes: &[u8; 64]) -> Option<()> {
        self.tiles = Self::RELEASED.tiles;
        // The first palette, from the first row on.
        if bytes[..2] != [1, 0] || bytes[2..ROW_BYTES_PLACE].iter().any(|&byte| byte != 0) {
            return None;
        }
        for (index, tile) in self.tiles.iter_mut().enumerate() {
            let place = ROW_BYTES_PLACE + 2 * index;
            tile.row_bytes = usize::from(u16::from_le_bytes([bytes[place], bytes[place + 1]]));
            tile.rows = usize::from(bytes[ROWS_PLACE + index]);
            let is_used = tile.rows > 0 && tile.row_bytes > 0;
            let fits = tile.rows <= ROWS && tile.row_bytes <= ROW_BYTES;
            if !fits || (!is_used && tile.shape() != (0, 0)) {
                return None;
            }
        }
        // There are no more tiles.
        let mut rest =
            bytes[ROW_BYTES_PLACE + 16..ROWS_PLACE].iter().chain(&bytes[ROWS_PLACE + 8..]);
        rest.all(|&byte| byte == 0).then_some(())
    }

    fn configured(&mut self, tile: usize) -> Option<&mut Tile> {
        Some(&mut self.tiles[tile]).filter(|tile| tile.rows > 0)
    }

    /// The tiles of a product, whose shapes fit.
    fn product(&mut self, operands: Operands) -> Option<(&mut Tile, Tile, Tile)> {
        let Operands { sum, left, right } = operands;
        self.products_done += 1;
        let (left_tile, right_tile) = (*self.configured(left)?, *self.configured(right)?);
        let sum_tile = self.configured(sum)?;
        let fits = sum_tile.shape() == (left_tile.rows, right_tile.row_bytes)
            && left_tile.row_bytes == right_tile.rows * 4;
        let are_three = sum != left && sum != right && left != right;
        (fits && are_three).then_some((sum_tile, left_tile, right_tile))
    }
}

/// Sums over the even columns and over the odd ones begin at zero; then both are added, and that to
/// what was there. All roundings are to nearest, and denormals count and come out as zeros.
#[target_feature(enable = "avx2,fma")]
fn bfloat16(sum: &mut Tile, left: &Tile, right: &Tile) {
    let floats = |bytes: &[u8; 4]| {
        let pair = u32::from_le_bytes(*bytes);
        [flushed(f32::from_bits(pair << 16)), flushed(f32::from_bits(pair & 0xffff_0000))]
    };
    let columns = sum.row_bytes / 4;
    for (sums, left) in sum.bytes.iter_mut().zip(&left.bytes).take(sum.rows) {
        let mut halves = [[0.0_f32; 2]; ROW_BYTES / 4];
        for (left, right) in left.as_chunks().0.iter().zip(&right.bytes).take(right.rows) {
            let left = floats(left);
            for (halves, right) in halves.iter_mut().zip(right.as_chunks().0) {
                for ((half, left), right) in halves.iter_mut().zip(left).zip(floats(right)) {
                    *half = flushed(left.mul_add(right, *half));
                }
            }
        }
        for (sum, [even, odd]) in sums.as_chunks_mut::<4>().0.iter_mut().zip(halves).take(columns) {
            let before = flushed(f32::from_le_bytes(*sum));
            *sum = flushed(before + flushed(even + odd)).to_le_bytes();
        }
    }
}

/// A denormal becomes a zero of its sign.
fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

/// Four products of a signed and an unsigned byte at a time; a sum wraps around.
fn integers(sum: &mut Tile, left: &Tile, right: &Tile) {
    let columns = sum.row_bytes / 4;
    for (sums, left) in sum.bytes.iter_mut().zip(&left.bytes).take(sum.rows) {
        for (left, right) in left.as_chunks::<4>().0.iter().zip(&right.bytes).take(right.rows) {
            let pairs = sums.as_chunks_mut::<4>().0.iter_mut().zip(right.as_chunks::<4>().0);
            for (sum, right) in pairs.take(columns) {
                let products = left
                    .iter()
                    .zip(right)
                    .map(|(left, &right)| i32::from(left.cast_signed()) * i32::from(right));
                let total = i32::from_le_bytes(*sum).wrapping_add(products.sum());
                *sum = total.to_le_bytes();
            }
        }
    }
}
