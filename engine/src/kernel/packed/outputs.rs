//! Outputs that several threads write at once.

use std::marker::PhantomData;

/// The outputs of one product, `[tokens, rows]`: each share of the work writes rows of its own, and
/// nobody reads.
pub(super) struct Outputs<'a> {
    values: *mut f32,
    tokens: usize,
    rows: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

#[allow(unsafe_code, reason = "threads write to one slice in places that interleave")]
// SAFETY: the pointer is to floats, which may go to other threads, and `write` asks its callers to
// keep their places apart.
unsafe impl Sync for Outputs<'_> {}

impl<'a> Outputs<'a> {
    /// `values` is `[tokens, rows]`.
    pub(super) fn new(values: &'a mut [f32], rows: usize) -> Self {
        let tokens = values.len() / rows;
        Self { values: values.as_mut_ptr(), tokens, rows, borrowed: PhantomData }
    }

    /// The memory behind `product`, which has room for `tokens` tokens of `rows` values and holds none.
    pub(super) fn spare(product: &'a mut Vec<f32>, tokens: usize, rows: usize) -> Self {
        let values = &mut product.spare_capacity_mut()[..tokens * rows];
        Self { values: values.as_mut_ptr().cast(), tokens, rows, borrowed: PhantomData }
    }

    /// Writes `values` for the rows from `first_row` on, as far as there are such rows.
    ///
    /// # Safety
    /// No two threads write the same rows of one token.
    ///
    /// # Panics
    /// Where there is no such token or row.
    #[allow(unsafe_code, reason = "threads write to one slice in places that interleave")]
    pub(super) unsafe fn write(&self, token: usize, first_row: usize, values: &[f32]) {
        assert!(token < self.tokens && first_row < self.rows, "the output has this place");
        let count = values.len().min(self.rows - first_row);
        // SAFETY: the place is inside the slice, which is borrowed for as long as `self` lives, and
        // the caller keeps every other thread away from it. `values` is borrowed, so apart from it.
        unsafe {
            let place = self.values.add(token * self.rows + first_row);
            place.copy_from_nonoverlapping(values.as_ptr(), count);
        }
    }
}
