//! From bytes to an instruction.
//!
//! All of AMX begins with a VEX prefix of three bytes: C4; the inverted upper bits of three register
//! numbers and the map 0F38 (2); W, the inverted number of a register, L and a prefix. Then comes the
//! opcode, and ModRM with what follows it (Intel's manual, volume 2, 2.3.5 and 2.1.5).

/// What an instruction does, with addresses instead of operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instruction {
    /// LDTILECFG, from an address.
    Configure(u64),
    /// TILERELEASE.
    Release,
    /// TILEZERO.
    Zero(usize),
    /// TILELOADD, from `address`, with `stride` bytes from row to row.
    Load { tile: usize, address: u64, stride: u64 },
    /// TILESTORED.
    Store { tile: usize, address: u64, stride: u64 },
    /// TDPBF16PS.
    Bfloat16(Operands),
    /// TDPBSUD: the left bytes are signed, the right ones are not.
    SignedUnsigned(Operands),
}

/// The tiles of a product: `sum += left * right`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operands {
    pub(super) sum: usize,
    pub(super) left: usize,
    pub(super) right: usize,
}

/// A register of 64 bits, by its number in an instruction, or the instruction pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Register(u8);

impl Register {
    pub(super) const RIP: Self = Self(16);

    /// Where it is among the registers of a context.
    pub(super) fn place(self) -> usize {
        const PLACES: [libc::c_int; 17] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
            libc::REG_RIP,
        ];
        usize::try_from(PLACES[usize::from(self.0)]).unwrap_or_default()
    }
}

/// The inverted upper bits of the register numbers in ModRM and SIB.
#[derive(Clone, Copy)]
struct Upper {
    index: u8,
    base: u8,
}

/// The instruction that `bytes` begin with, and its length; `None` where it is not one of ours.
pub(super) fn decode(
    bytes: &[u8; 11],
    value: impl Fn(Register) -> u64,
) -> Option<(Instruction, i64)> {
    let [0xc4, second, third, opcode, modrm, operand @ ..] = *bytes else { return None };
    let (map, wide, length_256) = (second & 0x1f, third >> 7, third >> 2 & 1);
    // A tile has no number above 7.
    if map != 2 || wide != 0 || length_256 != 0 || second >> 7 == 0 {
        return None;
    }
    let upper = Upper { index: !second >> 6 & 1, base: !second >> 5 & 1 };
    let (prefix, third_tile) = (third & 3, usize::from(!(third >> 3) & 0xf));
    let tile = usize::from(modrm >> 3 & 7);
    if modrm >> 6 == 3 {
        let operands = Operands { sum: tile, left: usize::from(modrm & 7), right: third_tile };
        let instruction = match (prefix, opcode, modrm) {
            (0, 0x49, 0xc0) if third_tile == 0 => Instruction::Release,
            (3, 0x49, _) if third_tile == 0 && modrm & 7 == 0 => Instruction::Zero(tile),
            (2, 0x5c, _) if third_tile < 8 => Instruction::Bfloat16(operands),
            (2, 0x5e, _) if third_tile < 8 => Instruction::SignedUnsigned(operands),
            _ => return None,
        };
        return Some((instruction, 5));
    }
    if third_tile != 0 {
        return None;
    }
    let memory = Memory::decode(modrm, upper, &operand, value)?;
    let Memory { address, index, length } = memory;
    let instruction = match (prefix, opcode, index) {
        (0, 0x49, _) if tile == 0 => {
            Instruction::Configure(address.wrapping_add(index.unwrap_or(0)))
        }
        (3, 0x4b, Some(stride)) => Instruction::Load { tile, address, stride },
        (2, 0x4b, Some(stride)) => Instruction::Store { tile, address, stride },
        _ => return None,
    };
    Some((instruction, 5 + length))
}

/// An operand in memory.
struct Memory {
    /// Base and displacement.
    address: u64,
    /// The scaled index: for tiles, the bytes from row to row.
    index: Option<u64>,
    /// Bytes after ModRM.
    length: i64,
}

impl Memory {
    fn decode(
        modrm: u8,
        upper: Upper,
        operand: &[u8; 6],
        value: impl Fn(Register) -> u64,
    ) -> Option<Self> {
        let (mode, low) = (modrm >> 6, modrm & 7);
        let has_sib = low == 4;
        let [sib, ..] = *operand;
        let base = if has_sib { sib & 7 } else { low };
        // Without a displacement this number means something else, which our assembly never does.
        if mode == 0 && base == 5 {
            return None;
        }
        let index = Register(sib >> 3 & 7 | upper.index << 3);
        // The stack pointer's number means that there is no index.
        let index = (has_sib && index.0 != 4).then(|| value(index) << (sib >> 6));
        let start = usize::from(has_sib);
        let (displacement, bytes) = match mode {
            0 => (0, 0),
            1 => (i64::from(operand[start].cast_signed()), 1),
            _ => {
                let bytes = operand[start..].first_chunk::<4>()?;
                (i64::from(i32::from_le_bytes(*bytes)), 4)
            }
        };
        let base = value(Register(base | upper.base << 3));
        let address = base.wrapping_add_signed(displacement);
        Some(Self { address, index, length: i64::from(has_sib) + bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a register has: a number of its own.
    fn value(register: Register) -> u64 {
        1000 * (u64::from(register.0) + 1)
    }

    fn found(bytes: &[u8]) -> Option<(Instruction, i64)> {
        let mut all = [0x90; 11];
        all[..bytes.len()].copy_from_slice(bytes);
        decode(&all, value)
    }

    /// The bytes are those of GNU as.
    #[test]
    fn every_form_of_an_operand_is_understood() {
        use Instruction::{Bfloat16, Configure, Load, Release, SignedUnsigned, Store, Zero};
        let of = |sum, left, right| Operands { sum, left, right };
        let forms: [(&[u8], Instruction); 9] = [
            // ldtilecfg [r12 + 64]
            (&[0xc4, 0xc2, 0x78, 0x49, 0x44, 0x24, 0x40], Configure(13_064)),
            // ldtilecfg [rsp]
            (&[0xc4, 0xe2, 0x78, 0x49, 0x04, 0x24], Configure(5_000)),
            // tileloadd tmm5, [r13 + r9 + 4096]
            (
                &[0xc4, 0x82, 0x7b, 0x4b, 0xac, 0x0d, 0x00, 0x10, 0x00, 0x00],
                Load { tile: 5, address: 18_096, stride: 10_000 },
            ),
            // tileloadd tmm1, [rax + 2 * rcx - 8]
            (
                &[0xc4, 0xe2, 0x7b, 0x4b, 0x4c, 0x48, 0xf8],
                Load { tile: 1, address: 992, stride: 4_000 },
            ),
            // tilestored [r8 + rbx], tmm7
            (
                &[0xc4, 0xc2, 0x7a, 0x4b, 0x3c, 0x18],
                Store { tile: 7, address: 9_000, stride: 4_000 },
            ),
            // tilezero tmm6
            (&[0xc4, 0xe2, 0x7b, 0x49, 0xf0], Zero(6)),
            // tdpbf16ps tmm3, tmm5, tmm7
            (&[0xc4, 0xe2, 0x42, 0x5c, 0xdd], Bfloat16(of(3, 5, 7))),
            // tdpbsud tmm1, tmm4, tmm7
            (&[0xc4, 0xe2, 0x42, 0x5e, 0xcc], SignedUnsigned(of(1, 4, 7))),
            // tilerelease
            (&[0xc4, 0xe2, 0x78, 0x49, 0xc0], Release),
        ];
        for (bytes, instruction) in forms {
            let length = i64::try_from(bytes.len()).unwrap();
            assert_eq!(found(bytes), Some((instruction, length)), "{bytes:02x?}");
        }
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        // ud2; tdpbssd tmm1, tmm4, tmm7; tileloadd without a stride; vpaddd ymm0, ymm0, ymm0.
        let others: [&[u8]; 4] = [
            &[0x0f, 0x0b],
            &[0xc4, 0xe2, 0x43, 0x5e, 0xcc],
            &[0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x20],
            &[0xc4, 0xe1, 0x7d, 0xfe, 0xc0],
        ];
        for bytes in others {
            assert_eq!(found(bytes), None, "{bytes:02x?}");
        }
    }
}
