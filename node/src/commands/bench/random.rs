//! Models of random weights, kept in the cache folder.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use umbel_shard::gguf::write::GgufWriter;
use umbel_shard::{Experts, Family, ModelConfig, WeightType};

use crate::args::RandomShape;
use crate::telemetry::say;

/// Any number: the same one always, so that everybody measures the same file.
const SEED: u64 = 1;

/// The path of a model of this shape, which is written if it is not there.
pub(super) fn model(shape: RandomShape, weights: WeightType, cache_dir: &Path) -> Result<String> {
    let (name, config) = match shape {
        RandomShape::M135 => ("135m", config([576, 1536, 49_152], 30, [9, 3])),
        RandomShape::B1 => ("1b", config([2048, 5632, 32_000], 16, [32, 8])),
        RandomShape::B8 => ("8b", config([4096, 14_336, 128_256], 32, [32, 8])),
        RandomShape::B3A05 => {
            let experts = Experts { count: 32, per_token: 4, normalized: true };
            let dense = config([2048, 768, 32_000], 16, [16, 4]);
            let sparse = ModelConfig { family: Family::Qwen3Moe, experts: Some(experts), ..dense };
            ("3b-a0.5b", sparse)
        }
    };
    let folder = cache_dir.join("random");
    let path = folder.join(format!("{name}-{}.gguf", weights.name().to_lowercase()));
    if !path.exists() {
        let file = GgufWriter::random_model(&config, weights, SEED)
            .with_context(|| format!("no model of this shape in {weights}"))?;
        say(format_args!("writing {}", path.display()));
        write(&file, &folder, &path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = path.to_str().context("the cache folder's name is no valid text")?;
    Ok(text.to_owned())
}

/// Under another name at first, so that nobody finds half of it. That is always the same name: what a run
/// that was interrupted has left there, the next one writes over.
fn write(file: &GgufWriter, folder: &Path, path: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let name = path.with_extension("gguf.part");
    let part = File::options().write(true).create(true).truncate(false).open(&name)?;
    // Others that write the same model wait here until it is whole.
    part.lock()?;
    if path.exists() {
        return Ok(());
    }
    let written = part.set_len(0).and_then(|()| {
        let mut out = BufWriter::new(&part);
        file.write(&mut out)?;
        out.flush()
    });
    if written.is_err() {
        // The disk may be full. Others wait for this file, so that it stays, with nothing in it.
        let _kept = part.set_len(0);
    }
    written?;
    fs::rename(&name, path)?;
    Ok(())
}

/// A Llama without biases, its head apart from its embedding.
fn config(
    [hidden_size, intermediate_size, vocabulary_size]: [usize; 3],
    block_count: u32,
    [head_count, kv_head_count]: [usize; 2],
) -> ModelConfig {
    ModelConfig {
        hidden_size,
        intermediate_size,
        head_count,
        kv_head_count,
        head_size: hidden_size / head_count,
        vocabulary_size,
        context_tokens: 8192,
        ..ModelConfig::llama(block_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_interrupted_run_has_left_is_written_over() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("random");
        let path = folder.join("small-f32.gguf");
        fs::create_dir(&folder).unwrap();
        fs::write(path.with_extension("gguf.part"), vec![7; 1 << 20]).unwrap();
        let config = config([64, 64, 40], 2, [2, 1]);
        let file = GgufWriter::random_model(&config, WeightType::F32, SEED).unwrap();
        // The second time it is there.
        for _ in 0..2 {
            write(&file, &folder, &path).unwrap();
            assert!(fs::read(&path).unwrap() == file.to_bytes());
        }
        let left = path.with_extension("gguf.part");
        assert!(fs::metadata(&left).map_or(0, |left| left.len()) == 0, "{}", left.display());
    }
}
