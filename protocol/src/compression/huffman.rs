//! Huffman codes of bytes, of bounded length.

/// The longest code, so that a table of 4 KiB reads a byte at once. Of bytes that are worth coding
/// it costs less than one in a thousand.
const LENGTH_MAX: u32 = 11;

/// Bytes of a code as it travels: half a byte for the length of each byte's code.
pub(super) const CODE_BYTES: usize = 128;

/// Bytes that are read between two looks at the input: at most 55 of the 56 bits at hand.
const AT_ONCE: usize = 5;

/// A canonical code: of each byte the length in bits, 0 for those that do not occur.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Code {
    lengths: [u8; 256],
}

impl Code {
    /// The best code for these bytes.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut counts = [0u64; 256];
        for byte in bytes {
            counts[usize::from(*byte)] += 1;
        }
        Self { lengths: best_lengths(&counts) }
    }

    pub(super) fn to_bytes(&self) -> [u8; CODE_BYTES] {
        let (pairs, _) = self.lengths.as_chunks::<2>();
        std::array::from_fn(|number| pairs[number][0] | pairs[number][1] << 4)
    }

    /// The code of these lengths; `None` where they are none of a code that leaves no gap.
    pub(super) fn from_bytes(bytes: &[u8; CODE_BYTES]) -> Option<Self> {
        let mut lengths = [0; 256];
        for (pair, byte) in lengths.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
            *pair = [byte & 15, byte >> 4];
        }
        let used = || lengths.iter().map(|length| u32::from(*length)).filter(|length| *length > 0);
        if used().any(|length| length > LENGTH_MAX) {
            return None;
        }
        let filled: u32 = used().map(|length| 1 << (LENGTH_MAX - length)).sum();
        // A single byte has one bit, and the other value of that bit means nothing.
        let is_single = used().count() == 1 && filled == 1 << (LENGTH_MAX - 1);
        (filled == 1 << LENGTH_MAX || is_single).then_some(Self { lengths })
    }

    /// Bits that these bytes take.
    pub(super) fn bits(&self, bytes: &[u8]) -> usize {
        bytes.iter().map(|byte| usize::from(self.lengths[usize::from(*byte)])).sum()
    }

    /// Appends the code of each byte, the first one in the lowest bits.
    pub(super) fn write(&self, bytes: &[u8], out: &mut Vec<u8>) {
        let codes = self.codes();
        let (mut held, mut held_bits) = (0u64, 0u32);
        for byte in bytes {
            let (code, length) = codes[usize::from(*byte)];
            held |= u64::from(code) << held_bits;
            held_bits += length;
            if held_bits >= 32 {
                let [a, b, c, d, ..] = held.to_le_bytes();
                out.extend_from_slice(&[a, b, c, d]);
                held >>= 32;
                held_bits -= 32;
            }
        }
        let rest = held_bits.div_ceil(8) as usize;
        out.extend_from_slice(&held.to_le_bytes()[..rest]);
    }

    /// Fills `bytes` from `bits`; `None` where those are fewer or more than it takes.
    pub(super) fn read(&self, bits: &[u8], bytes: &mut [u8]) -> Option<()> {
        let table = self.table();
        let mut input = Input { bytes: bits, held: 0, held_bits: 0, missing_bits: 0 };
        for group in bytes.chunks_mut(AT_ONCE) {
            input.refill();
            for byte in group {
                let index = input.held & ((1 << LENGTH_MAX) - 1);
                let [value, length] = table[usize::try_from(index).expect("it has 11 bits")];
                *byte = value;
                input.held >>= length;
                input.held_bits = input.held_bits.checked_sub(u32::from(length))?;
            }
        }
        // What was made up beyond the end must be left, and nothing else but the last byte's rest.
        let left = input.held_bits.checked_sub(input.missing_bits)?;
        (input.bytes.is_empty() && left < 8).then_some(())
    }

    /// Of each byte its code, as it stands in the lowest bits, and the code's length.
    fn codes(&self) -> [(u16, u32); 256] {
        let mut codes = [(0, 0); 256];
        let mut next = 0u16;
        for length in 1..=LENGTH_MAX {
            for (code, of) in codes.iter_mut().zip(&self.lengths) {
                if u32::from(*of) == length {
                    *code = (next.reverse_bits() >> (16 - length), length);
                    next += 1;
                }
            }
            next <<= 1;
        }
        codes
    }

    /// By the next bits of the input, the byte and how many of those bits are its code.
    fn table(&self) -> Vec<[u8; 2]> {
        let mut table = vec![[0, 1]; 1 << LENGTH_MAX];
        for (byte, (code, length)) in (0u8..=255).zip(self.codes()) {
            if length > 0 {
                let length_byte = u8::try_from(length).expect("at most 11");
                for place in table.iter_mut().skip(code.into()).step_by(1 << length) {
                    *place = [byte, length_byte];
                }
            }
        }
        table
    }
}

/// Bits that are still to be read.
struct Input<'a> {
    bytes: &'a [u8],
    held: u64,
    held_bits: u32,
    /// How many of the bits at hand were made up, since the input had ended.
    missing_bits: u32,
}

impl Input<'_> {
    /// Takes as many whole bytes as there is room for: at least 56 bits are at hand then.
    fn refill(&mut self) {
        let bytes = (63 - self.held_bits) / 8;
        if let Some(word) = self.bytes.first_chunk::<8>() {
            self.held |= u64::from_le_bytes(*word) << self.held_bits;
            // What stands above these bits is read once more, and is the same.
            self.bytes = &self.bytes[bytes as usize..];
        } else {
            for number in 0..bytes {
                match self.bytes.split_first() {
                    Some((byte, rest)) => {
                        self.held |= u64::from(*byte) << (self.held_bits + 8 * number);
                        self.bytes = rest;
                    }
                    None => self.missing_bits += 8,
                }
            }
        }
        self.held_bits += 8 * bytes;
    }
}

/// The lengths of the shortest code in which none is longer than allowed (package-merge: Larmore
/// and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes", 1990).
fn best_lengths(counts: &[u64; 256]) -> [u8; 256] {
    let mut lengths = [0; 256];
    let used = (0u8..=255).filter(|byte| counts[usize::from(*byte)] > 0);
    let mut single: Vec<(u64, Vec<u8>)> =
        used.map(|byte| (counts[usize::from(byte)], vec![byte])).collect();
    if let [(_, only)] = single.as_slice() {
        lengths[usize::from(only[0])] = 1;
        return lengths;
    }
    single.sort_by_key(|(count, _)| *count);
    let mut level = single.clone();
    for _ in 1..LENGTH_MAX {
        let pairs = level.chunks_exact(2).map(|pair| {
            (pair[0].0 + pair[1].0, [pair[0].1.as_slice(), pair[1].1.as_slice()].concat())
        });
        let pairs: Vec<_> = pairs.collect();
        level = [single.as_slice(), &pairs].concat();
        level.sort_by_key(|(count, _)| *count);
    }
    for (_, bytes) in level.iter().take((2 * single.len()).saturating_sub(2)) {
        for byte in bytes {
            lengths[usize::from(*byte)] += 1;
        }
    }
    lengths
}
