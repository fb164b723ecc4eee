//! The order of the rows of `q` and `k` in files of the architecture `llama`.
//!
//! Hugging Face turns value `i` of a head together with value `i + n/2`, llama.cpp value `2i` together
//! with `2i + 1`; its converter (`LlamaModel.permute` in `convert_hf_to_gguf.py`) therefore moves row
//! `half * n/2 + i` of each head to `2i + half`. Only whole rows move, so quantized ones stay as they
//! are.

/// The rows of `heads` heads, as GGUF has them, in Hugging Face's order.
///
/// `None` where the bytes are no whole rows, or the rows no whole pairs for each head.
#[must_use]
pub fn unpermute_rows(bytes: &[u8], row_bytes: usize, heads: usize) -> Option<Vec<u8>> {
    reorder(bytes, row_bytes, heads, |half, pair, pairs| (half * pairs + pair, 2 * pair + half))
}

/// The rows of `heads` heads, as Hugging Face has them, in GGUF's order.
///
/// `None` where the bytes are no whole rows, or the rows no whole pairs for each head.
#[must_use]
pub fn permute_rows(bytes: &[u8], row_bytes: usize, heads: usize) -> Option<Vec<u8>> {
    reorder(bytes, row_bytes, heads, |half, pair, pairs| (2 * pair + half, half * pairs + pair))
}

/// Copies rows head by head; `places` gives where a row of a head goes and where it comes from.
fn reorder(
    bytes: &[u8],
    row_bytes: usize,
    heads: usize,
    places: impl Fn(usize, usize, usize) -> (usize, usize),
) -> Option<Vec<u8>> {
    let head_bytes = bytes.len().checked_div(heads)?;
    let rows = head_bytes.checked_div(row_bytes)?;
    if rows * row_bytes * heads != bytes.len() || !rows.is_multiple_of(2) {
        return None;
    }
    let pairs = rows / 2;
    let mut out = vec![0; bytes.len()];
    if bytes.is_empty() {
        return Some(out);
    }
    for (from, to) in bytes.chunks_exact(head_bytes).zip(out.chunks_exact_mut(head_bytes)) {
        for half in 0..2 {
            for pair in 0..pairs {
                let (target, origin) = places(half, pair, pairs);
                to[target * row_bytes..][..row_bytes]
                    .copy_from_slice(&from[origin * row_bytes..][..row_bytes]);
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_to_their_places() {
        // Two heads of six rows of two bytes: pairs (0,3) (1,4) (2,5) become neighbours.
        let original: Vec<u8> = (0..12).flat_map(|row| [row, row]).collect();
        let permuted = permute_rows(&original, 2, 2).unwrap();
        let order: Vec<u8> = permuted.chunks_exact(2).map(|row| row[0]).collect();
        assert_eq!(order, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(unpermute_rows(&permuted, 2, 2).unwrap(), original);
    }

    #[test]
    fn rows_that_do_not_divide_are_refused() {
        assert_eq!(unpermute_rows(&[0; 10], 2, 2), None, "five rows for two heads");
        assert_eq!(unpermute_rows(&[0; 6], 1, 2), None, "three rows have no pairs");
        assert_eq!(unpermute_rows(&[0; 6], 0, 2), None);
        assert_eq!(unpermute_rows(&[0; 6], 1, 0), None);
    }
}
