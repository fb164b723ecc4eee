//! How fast this machine computes the blocks that it serves, measured on them when it starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use umbel_engine::{ForwardError, HiddenStates, HostedSpan, KvArena};
use umbel_protocol::announcement::Throughput;
use umbel_protocol::{ModelId, Span};

/// Tokens that are decoded, one at a time, after one that warms up.
const DECODE_STEPS: usize = 5;

/// Rows of the batch of decode: what eight sessions at once would bring.
const BATCH: usize = 8;

/// Tokens of the prefill, through one block: as many as a client sends at once.
const PREFILL_TOKENS: usize = 512;

/// Tokens for which an arena must have room.
pub const TOKENS: usize = PREFILL_TOKENS + 1;

/// One part in so many of a new sample goes into the figure of live traffic: it follows the machine
/// within some twenty steps.
const LIVE_STEPS: u32 = 16;

/// How long a measurement holds: the machine may have been busy, and another build of this version
/// may be faster.
const KEPT_FOR: Duration = Duration::from_hours(24);

/// Of what a measurement holds.
#[derive(Debug, Clone)]
pub struct Key {
    /// The model, whose blocks are alike.
    pub model: ModelId,
    /// The device, and how much of it is used.
    pub device: String,
}

/// A figure as it is kept.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Kept {
    decode: f32,
    decode_batch: f32,
    prefill: f32,
}

/// The speed of these blocks: as it was kept, or else measured and kept.
///
/// # Errors
/// Where the blocks cannot be computed at all.
pub fn throughput(
    blocks: &HostedSpan,
    arena: &KvArena,
    key: &Key,
    folder: &Path,
) -> Result<Throughput, ForwardError> {
    let file = file_of(folder, key);
    if let Some(kept) = read(&file) {
        // One step brings the weights into memory, so that the first client need not wait for it.
        runs(blocks, arena, blocks.span(), &[1])?;
        return Ok(kept.into());
    }
    let Some(measured) = measure(blocks, arena)? else {
        // A budget too small to measure in says nothing of the speed.
        return Ok(Throughput::default());
    };
    write(&file, measured);
    Ok(measured.into())
}

/// What a token takes through one block, after a step of it took `compute` through so many.
#[must_use]
pub fn smooth(known: Option<Duration>, compute: Duration, blocks: u32) -> Duration {
    let sample = compute / blocks.max(1);
    known.map_or(sample, |known| known * (LIVE_STEPS - 1) / LIVE_STEPS + sample / LIVE_STEPS)
}

/// What was measured at the start, with what was seen of decode since.
#[must_use]
pub fn refine(measured: Throughput, per_block: Option<Duration>) -> Throughput {
    let decode =
        per_block.map_or(measured.decode_tokens_per_second, |per_block| rate(1, 1, per_block));
    Throughput { decode_tokens_per_second: decode, ..measured }
}

fn measure(blocks: &HostedSpan, arena: &KvArena) -> Result<Option<Kept>, ForwardError> {
    let span = blocks.span();
    let first = Span::new(span.start(), span.start() + 1).expect("one block");
    let Some(mut decode) = runs(blocks, arena, span, &[1; DECODE_STEPS + 1])? else {
        return Ok(None);
    };
    decode.remove(0);
    decode.sort();
    let decode = rate(1, span.block_count(), decode[decode.len() / 2]);
    let of_one = |tokens: usize| -> Result<f32, ForwardError> {
        let runs = runs(blocks, arena, first, &[1, tokens])?;
        Ok(runs.map_or(0.0, |runs| rate(tokens, 1, runs[1])))
    };
    Ok(Some(Kept { decode, decode_batch: of_one(BATCH)?, prefill: of_one(PREFILL_TOKENS)? }))
}

/// How long steps of so many tokens take, one after another in a session of their own; `None`
/// where there is no room for them.
fn runs(
    blocks: &HostedSpan,
    arena: &KvArena,
    span: Span,
    steps: &[usize],
) -> Result<Option<Vec<Duration>>, ForwardError> {
    let Ok(mut table) = arena.open(span, steps.iter().sum()) else {
        return Ok(None);
    };
    let (mut durations, mut start) = (Vec::new(), 0);
    for &tokens in steps {
        // Small and uneven, as hidden states are, so that no shortcut for zeros is measured; and other ones in
        // each step, since alike ones would go through the same experts, which are near by then.
        let places = start..start + tokens * blocks.hidden_size();
        start = places.end;
        let values: Vec<f32> = places.map(|place| ((place % 97) as f32 - 48.0) / 97.0).collect();
        let hidden = HiddenStates::from_values(values, blocks.hidden_size())
            .expect("as many values as the tokens have");
        let started = Instant::now();
        blocks.forward(&mut table, &hidden)?;
        durations.push(started.elapsed());
    }
    Ok(Some(durations))
}

#[expect(clippy::cast_possible_truncation, reason = "a rate needs no more digits")]
fn rate(tokens: usize, blocks: u32, took: Duration) -> f32 {
    (tokens as f64 * f64::from(blocks) / took.as_secs_f64().max(1e-9)) as f32
}

impl From<Kept> for Throughput {
    fn from(kept: Kept) -> Self {
        Self {
            decode_tokens_per_second: kept.decode,
            prefill_tokens_per_second: kept.prefill,
            decode_batch_tokens_per_second: kept.decode_batch,
            ..Self::default()
        }
    }
}

fn file_of(folder: &Path, key: &Key) -> PathBuf {
    let model = key.model.to_string();
    let version = env!("CARGO_PKG_VERSION");
    folder.join(format!("{}-{}-{version}.json", &model[..16], key.device))
}

/// What a file that cannot be read or is old should hold is measured anew.
fn read(file: &Path) -> Option<Kept> {
    let written = fs::metadata(file).ok()?.modified().ok()?;
    // A file from the future is as little to be trusted.
    if written.elapsed().ok()? > KEPT_FOR {
        return None;
    }
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// A figure that cannot be kept is measured again the next time.
fn write(file: &Path, kept: Kept) {
    let write = || -> std::io::Result<()> {
        let folder = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut part = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&mut part, &kept)?;
        part.persist(file)?;
        Ok(())
    };
    if let Err(error) = write() {
        tracing::warn!(%error, file = %file.display(), "the measured speed is not kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_read_as_it_was_written_and_a_broken_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key { model: ModelId::from_bytes([7; 32]), device: "cpu-2".to_owned() };
        let file = file_of(folder.path(), &key);
        assert!(read(&file).is_none());
        write(&file, Kept { decode: 900.5, decode_batch: 1_800.0, prefill: 4_000.0 });
        let kept: Throughput = read(&file).unwrap().into();
        assert_eq!(kept.decode_tokens_per_second.to_bits(), 900.5f32.to_bits());
        fs::write(&file, b"{").unwrap();
        assert!(read(&file).is_none());
    }

    #[test]
    fn a_figure_of_yesterday_is_measured_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("figure.json");
        write(&file, Kept { decode: 1.0, decode_batch: 2.0, prefill: 3.0 });
        assert!(read(&file).is_some());
        let yesterday = std::time::SystemTime::now() - KEPT_FOR - Duration::from_secs(60);
        fs::File::options().write(true).open(&file).unwrap().set_modified(yesterday).unwrap();
        assert!(read(&file).is_none());
    }

    #[test]
    fn live_traffic_moves_the_figure_towards_what_is_seen() {
        let measured = Throughput { decode_tokens_per_second: 1_000.0, ..Default::default() };
        assert_eq!(refine(measured, None), measured);
        let mut seen = None;
        for _ in 0..200 {
            seen = Some(smooth(seen, Duration::from_millis(20), 10));
        }
        let announced = refine(measured, seen).decode_tokens_per_second;
        assert!((announced - 500.0).abs() < 1.0, "{announced}");
    }
}
