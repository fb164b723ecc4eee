//! How a server keeps keys and values where all sessions share pages of one size, and what they take.

use crate::DType;

/// Pages of one size, of which a block's keys and values of some positions take one. Sessions that ask
/// for 8 bits have the integers of several blocks in a page, and the scales of more in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedPages {
    /// How keys and values of all other sessions are kept.
    pub native: DType,
    /// Blocks whose integers share a page.
    pub quants_together: u32,
    /// Blocks whose scales share a page.
    pub scales_together: u32,
}

impl SharedPages {
    /// How keys and values are kept of a session that asked for `asked`.
    #[must_use]
    pub const fn kept(&self, asked: DType) -> DType {
        match asked {
            DType::Q8 => DType::Q8,
            DType::F32 | DType::F16 | DType::BF16 | DType::Id => self.native,
        }
    }

    /// Pages of integers for so many blocks of a session with 8 bits.
    #[must_use]
    pub const fn quant_pages(&self, blocks: u32) -> u32 {
        blocks.div_ceil(self.quants_together)
    }

    /// Pages that so many blocks take of a session that is kept in `kept`.
    #[must_use]
    pub const fn pages(&self, kept: DType, blocks: u32) -> u32 {
        match kept {
            DType::Q8 => self.quant_pages(blocks) + blocks.div_ceil(self.scales_together),
            DType::F32 | DType::F16 | DType::BF16 | DType::Id => blocks,
        }
    }

    /// Bytes that a head of keys of one token takes in so many blocks.
    #[must_use]
    pub const fn row_bytes(&self, kept: DType, head_size: u32, blocks: u32) -> u64 {
        self.native.row_bytes(head_size) * self.pages(kept, blocks) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_in_8_bits_takes_about_half_of_many_blocks() {
        let pages = SharedPages { native: DType::BF16, quants_together: 2, scales_together: 32 };
        let of = |blocks| (pages.pages(DType::Q8, blocks), pages.pages(DType::BF16, blocks));
        assert_eq!([of(1), of(8), of(32), of(33)], [(2, 1), (5, 8), (17, 32), (19, 33)]);
        assert_eq!(pages.row_bytes(DType::Q8, 64, 32), 32 * DType::Q8.row_bytes(64));
        assert_eq!(pages.kept(DType::F16), DType::BF16);
        assert_eq!(pages.kept(DType::Q8), DType::Q8);
    }
}
