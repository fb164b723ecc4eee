//! Models of random weights: as large and as slow as real ones, and good for measuring alone.

use std::io::{self, Write};

use half::{bf16, f16};

use super::convert::{ConvertError, write_metadata};
use super::write::GgufWriter;
use crate::config::ModelConfig;
use crate::layout;
use crate::weight::WeightType;

/// How the name of a router ends.
const ROUTER: &str = "ffn_gate_inp.weight";

impl GgufWriter {
    /// A file of a model of this shape whose matrices have random values of type `matrices`. The same
    /// seed gives the same file.
    ///
    /// The values are spread so that hidden states keep their size from block to block. There is no
    /// tokenizer.
    ///
    /// # Errors
    /// [`ConvertError`] where the format has no word for something, or a row of a matrix is no whole
    /// number of blocks of the type.
    pub fn random_model(
        config: &ModelConfig,
        matrices: WeightType,
        seed: u64,
    ) -> Result<Self, ConvertError> {
        let mut writer = Self::new();
        write_metadata(&mut writer, config)?;
        writer.value("tokenizer.ggml.model", "none");
        let ends = layout::embedding(config).into_iter().chain(layout::head(config));
        let blocks = (0..config.block_count).flat_map(|index| layout::block(config, index));
        let mut written = Vec::new();
        for (number, tensor) in (0..).zip(ends.chain(blocks)) {
            if written.contains(&tensor.gguf_name) {
                continue;
            }
            let shape = tensor.gguf_shape();
            let seed = seed.wrapping_mul(1 << 20).wrapping_add(number);
            match shape[..] {
                [size] => {
                    let ones = 1f32.to_le_bytes().repeat(size);
                    writer.tensor(&tensor.gguf_name, WeightType::F32, &shape, ones);
                }
                // As in every file: no router is quantized.
                _ if tensor.gguf_name.ends_with(ROUTER) => {
                    writer.random_tensor(&tensor.gguf_name, WeightType::F32, &shape, seed);
                }
                _ if matrices.tensor_bytes(&shape).is_none() => {
                    let what = "rows are cut in the middle of a block of weights";
                    return Err(ConvertError::Unsayable { what });
                }
                _ => {
                    writer.random_tensor(&tensor.gguf_name, matrices, &shape, seed);
                }
            }
            written.push(tensor.gguf_name);
        }
        Ok(writer)
    }
}

/// Random blocks of weights, made while they are written.
#[derive(Debug)]
pub(super) struct RandomBlocks {
    weight_type: WeightType,
    count: usize,
    /// The root of the mean square of the values: that of a random matrix that keeps the size of
    /// what it multiplies.
    spread: f32,
    seed: u64,
}

/// Blocks that are written at once: at least 4 KiB of them.
const CHUNK_BLOCKS: usize = 2048;

impl RandomBlocks {
    pub(super) fn new(weight_type: WeightType, shape: &[usize], seed: u64) -> Self {
        let columns = shape.last().copied().unwrap_or(1).max(1);
        #[allow(clippy::cast_precision_loss, reason = "rows have far fewer than 2^23 values")]
        let spread = 1.0 / (columns as f32).sqrt();
        let count = shape.iter().product::<usize>() / weight_type.block_values();
        Self { weight_type, count, spread, seed }
    }

    pub(super) const fn bytes(&self) -> usize {
        self.count * self.weight_type.block_bytes()
    }

    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut numbers = Numbers(self.seed);
        let mut chunk = Vec::with_capacity(CHUNK_BLOCKS * self.weight_type.block_bytes());
        for start in (0..self.count).step_by(CHUNK_BLOCKS) {
            chunk.clear();
            for _ in start..self.count.min(start + CHUNK_BLOCKS) {
                self.push_block(&mut numbers, &mut chunk);
            }
            out.write_all(&chunk)?;
        }
        Ok(())
    }

    /// The layouts are those of `ggml-common.h`: see the engine's `format` for their meaning.
    fn push_block(&self, numbers: &mut Numbers, out: &mut Vec<u8>) {
        // A scale for integers of this spread, a quarter up or down.
        let mut scale =
            |integers: f32| self.spread / integers * (0.75 + 0.5 * (numbers.unit() * 0.5 + 0.5));
        match self.weight_type {
            WeightType::F32 => out.extend((numbers.unit() * ROOT_3 * self.spread).to_le_bytes()),
            WeightType::F16 => {
                out.extend(f16::from_f32(numbers.unit() * ROOT_3 * self.spread).to_le_bytes());
            }
            WeightType::BF16 => {
                out.extend(bf16::from_f32(numbers.unit() * ROOT_3 * self.spread).to_le_bytes());
            }
            WeightType::Q4_0 => halves_and_bytes([scale(SPREAD_4)], 16, numbers, out),
            WeightType::Q4_1 => {
                let scale = scale(SPREAD_4);
                halves_and_bytes([scale, -7.5 * scale], 16, numbers, out);
            }
            WeightType::Q5_0 => halves_and_bytes([scale(SPREAD_5)], 4 + 16, numbers, out),
            WeightType::Q5_1 => {
                let scale = scale(SPREAD_5);
                halves_and_bytes([scale, -15.5 * scale], 4 + 16, numbers, out);
            }
            WeightType::Q8_0 => halves_and_bytes([scale(SPREAD_8)], 32, numbers, out),
            WeightType::Q4K => {
                let scale = scale(SPREAD_4 * SCALE_6 * 2.0);
                halves_and_bytes([scale, 7.5 * scale], 12 + 128, numbers, out);
            }
            WeightType::Q5K => {
                let scale = scale(SPREAD_5 * SCALE_6 * 2.0);
                halves_and_bytes([scale, 15.5 * scale], 12 + 32 + 128, numbers, out);
            }
            WeightType::Q6K => {
                let scale = scale(SPREAD_6 * SPREAD_8);
                halves_and_bytes([], 128 + 64 + 16, numbers, out);
                halves_and_bytes([scale], 0, numbers, out);
            }
        }
    }
}

/// Uniform values in [-r, r] have a spread of r over this.
const ROOT_3: f32 = 1.732;

/// The spreads of integers of 4, 5, 6 and 8 random bits: 2^bits over the root of 12.
const SPREAD_4: f32 = 4.62;
const SPREAD_5: f32 = 9.24;
const SPREAD_6: f32 = 18.5;
const SPREAD_8: f32 = 73.9;

/// The mean of a scale of 6 random bits.
const SCALE_6: f32 = 31.5;

/// The factors in binary16, and then random bytes.
fn halves_and_bytes<const N: usize>(
    factors: [f32; N],
    bytes: usize,
    numbers: &mut Numbers,
    out: &mut Vec<u8>,
) {
    factors.iter().for_each(|&factor| out.extend(f16::from_f32(factor).to_le_bytes()));
    let end = out.len() + bytes;
    while out.len() < end {
        out.extend(numbers.next().to_le_bytes());
    }
    out.truncate(end);
}

/// `SplitMix64`, <https://prng.di.unimi.it/splitmix64.c>.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A value from -1 to 1.
    fn unit(&mut self) -> f32 {
        #[allow(clippy::cast_precision_loss, reason = "24 bits are exact in binary32")]
        let bits = (self.next() >> 40) as f32;
        bits / 8_388_608.0 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::parse_header;

    fn shape() -> ModelConfig {
        ModelConfig {
            hidden_size: 256,
            intermediate_size: 512,
            head_count: 4,
            kv_head_count: 2,
            head_size: 64,
            vocabulary_size: 300,
            context_tokens: 128,
            ..ModelConfig::llama(2)
        }
    }

    #[test]
    fn a_random_model_is_read_as_the_shape_that_was_asked_for() {
        for kind in WeightType::ALL {
            let file = GgufWriter::random_model(&shape(), kind, 3).unwrap().to_bytes();
            let header = parse_header(&file).unwrap();
            assert_eq!(ModelConfig::from_gguf(&header, None).unwrap(), shape(), "{kind}");
            let matrix = &header.tensors()["blk.1.ffn_down.weight"];
            assert_eq!((matrix.weight_type, &matrix.shape[..]), (kind, &[256, 512][..]));
            assert_eq!(file, GgufWriter::random_model(&shape(), kind, 3).unwrap().to_bytes());
            assert_ne!(file, GgufWriter::random_model(&shape(), kind, 4).unwrap().to_bytes());
        }
    }

    #[test]
    fn rows_that_are_no_whole_blocks_are_refused() {
        let narrow = ModelConfig { intermediate_size: 96, ..shape() };
        assert!(GgufWriter::random_model(&narrow, WeightType::Q4K, 0).is_err());
        assert!(GgufWriter::random_model(&narrow, WeightType::Q8_0, 0).is_ok());
    }
}
