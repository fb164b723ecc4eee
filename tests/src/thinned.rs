//! A smaller model made out of a larger one, by leaving blocks out: what is left is cheaper and worse,
//! and has the same vocabulary, so that it can draft for the one that it was made of.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context as _, ensure};
use umbel_shard::gguf::write::{GgufWriter, WriteValue};
use umbel_shard::gguf::{Array, GgufHeader, Value, parse_header};

/// Writes the model of a GGUF file without some of its blocks.
///
/// # Errors
/// Where the file is no model, or has no such block, or nothing can be written.
pub fn leave_out(blocks: &[u32], from: &Path, to: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    let header = parse_header(&bytes)?;
    let kept = kept(&header, blocks)?;
    let mut writer = GgufWriter::new();
    for (key, value) in header.metadata() {
        let value = if key.ends_with(BLOCK_COUNT) {
            WriteValue::U32(u32::try_from(kept.len())?)
        } else {
            rewritten(value).with_context(|| format!("{key} cannot be written"))?
        };
        // The offsets are new ones.
        if key != "general.alignment" {
            writer.value(key, value);
        }
    }
    for (name, tensor) in header.tensors() {
        let Some(name) = renamed(name, &kept) else {
            continue;
        };
        let (begin, count) = (usize::try_from(tensor.offset)?, usize::try_from(tensor.bytes)?);
        let content = bytes[begin..begin + count].to_vec();
        writer.tensor(&name, tensor.weight_type, &tensor.shape, content);
    }
    let mut out = BufWriter::new(File::create(to)?);
    writer.write(&mut out)?;
    out.into_inner()?.sync_all()?;
    Ok(())
}

/// How the key of the number of blocks ends; it begins with the architecture.
const BLOCK_COUNT: &str = ".block_count";

/// The numbers of the blocks that stay, in order.
fn kept(header: &GgufHeader, left_out: &[u32]) -> anyhow::Result<Vec<u32>> {
    let mut values = header.metadata().iter();
    let (_, count) = values.find(|(key, _)| key.ends_with(BLOCK_COUNT)).context("no blocks")?;
    let count = u32::try_from(count.as_unsigned().context("no number of blocks")?)?;
    for block in left_out {
        ensure!(*block < count, "there are blocks 0 to {count}, and no block {block}");
    }
    Ok((0..count).filter(|block| !left_out.contains(block)).collect())
}

/// The name of a tensor in the new file; none where its block is left out.
fn renamed(name: &str, kept: &[u32]) -> Option<String> {
    let Some(rest) = name.strip_prefix("blk.") else {
        return Some(name.to_owned());
    };
    let (block, rest) = rest.split_once('.')?;
    let block: u32 = block.parse().ok()?;
    let place = kept.iter().position(|kept| *kept == block)?;
    Some(format!("blk.{place}.{rest}"))
}

/// A value as it is written; numbers of a file have no width once they are read.
fn rewritten(value: &Value) -> anyhow::Result<WriteValue> {
    Ok(match value {
        Value::Unsigned(number) => match u32::try_from(*number) {
            Ok(number) => WriteValue::U32(number),
            Err(_) => WriteValue::U64(*number),
        },
        Value::Signed(number) => WriteValue::I32(i32::try_from(*number)?),
        #[expect(clippy::cast_possible_truncation, reason = "models are written in binary32")]
        Value::Float(number) => WriteValue::F32(*number as f32),
        Value::Flag(flag) => WriteValue::Flag(*flag),
        Value::Text(text) => WriteValue::Text(text.clone()),
        Value::Array(Array::Texts(texts)) => {
            WriteValue::Texts(texts.iter().map(str::to_owned).collect())
        }
        #[expect(clippy::cast_possible_truncation, reason = "models are written in binary32")]
        Value::Array(Array::Floats(numbers)) => {
            WriteValue::F32s(numbers.iter().map(|number| *number as f32).collect())
        }
        Value::Array(
            Array::Unsigned(_) | Array::Signed(_) | Array::Flags(_) | Array::Arrays(_),
        ) => {
            let numbers = value.as_numbers().context("an array of another kind")?;
            let narrow = numbers.into_iter().map(i32::try_from);
            WriteValue::I32s(narrow.collect::<Result<_, _>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use umbel_shard::{ModelConfig, WeightType};

    use super::*;

    #[test]
    fn the_blocks_that_are_left_move_up_and_are_as_they_were() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let (whole, thin) = (folder.path().join("whole.gguf"), folder.path().join("thin.gguf"));
        fs::write(
            &whole,
            GgufWriter::random_model(&ModelConfig::llama(4), WeightType::Q8_0, 1)?.to_bytes(),
        )?;
        leave_out(&[1, 2], &whole, &thin)?;
        let (whole, thin) = (fs::read(whole)?, fs::read(thin)?);
        let (before, after) = (parse_header(&whole)?, parse_header(&thin)?);
        assert_eq!(ModelConfig::from_gguf(&after, None)?, ModelConfig::llama(2));
        let bytes = |header: &GgufHeader, file: &[u8], name: &str| {
            let tensor = &header.tensors()[name];
            let begin = usize::try_from(tensor.offset).expect("it lies in the file");
            file[begin..begin + usize::try_from(tensor.bytes).expect("as above")].to_vec()
        };
        let last = bytes(&before, &whole, "blk.3.ffn_up.weight");
        assert_eq!(bytes(&after, &thin, "blk.1.ffn_up.weight"), last);
        let head = bytes(&before, &whole, "output.weight");
        assert_eq!(bytes(&after, &thin, "output.weight"), head);
        assert!(
            leave_out(&[4], &folder.path().join("whole.gguf"), &folder.path().join("x")).is_err()
        );
        Ok(())
    }
}
