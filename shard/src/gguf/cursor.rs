//! Reading little-endian numbers and texts from bytes that may end anywhere.

use super::GgufError;

/// Bytes, and how far they have been read.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// How many bytes have been read.
    pub(super) const fn offset(&self) -> u64 {
        self.offset as u64
    }

    /// How many bytes are left.
    pub(super) const fn left(&self) -> u64 {
        (self.bytes.len() - self.offset) as u64
    }

    pub(super) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let cut_off = GgufError::CutOff { what, offset: self.offset() };
        let end = usize::try_from(count).ok().and_then(|count| self.offset.checked_add(count));
        let Some((taken, end)) = end.and_then(|end| Some((self.bytes.get(self.offset..end)?, end)))
        else {
            return Err(cut_off);
        };
        self.offset = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        let offset = self.offset();
        let taken = self.take(N as u64, what)?;
        taken.try_into().map_err(|_| GgufError::CutOff { what, offset })
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A text behind its length, of at most `max` bytes.
    pub(super) fn text(&mut self, max: u64, what: &'static str) -> Result<&'a str, GgufError> {
        let length = self.u64(what)?;
        if length > self.left() {
            return Err(GgufError::CutOff { what, offset: self.offset() });
        }
        if length > max {
            return Err(GgufError::TooMany { what: "bytes of text", found: length, max });
        }
        let offset = self.offset();
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { offset })
    }

    /// A count of things of at least `bytes_each`, which must fit in what is left.
    pub(super) fn count(
        &mut self,
        what: &'static str,
        bytes_each: u64,
        max: u64,
    ) -> Result<u64, GgufError> {
        let offset = self.offset();
        let found = self.u64(what)?;
        self.check_count(found, what, bytes_each, max, offset)?;
        Ok(found)
    }

    /// The check of [`Self::count`] for a count that was read at `offset`.
    pub(super) fn check_count(
        &self,
        found: u64,
        what: &'static str,
        bytes_each: u64,
        max: u64,
        offset: u64,
    ) -> Result<(), GgufError> {
        if found > max {
            return Err(GgufError::TooMany { what, found, max });
        }
        if found.checked_mul(bytes_each).is_none_or(|bytes| bytes > self.left()) {
            return Err(GgufError::CutOff { what, offset });
        }
        Ok(())
    }
}
