//! What is told of one client.

use serde_json::json;

use super::sample::{
    Sample, cell, decode_ratio, least, median, median_ratio, percent, quantile_ms,
};
use super::{Contender, Limits};
use crate::args::BenchArguments;

/// The name of the program that is compared with.
pub(super) const LLAMA: &str = "llama.cpp";

/// What the columns say.
const LEGEND: &str = "\
of reading: the bytes that these tokens need (every weight that they meet once, and the keys and values so far)
            as a share of what the machine read from memory right before and after, for as long
            as a few tokens take; in the middle of all rounds
of units:   the multiplications and additions that the prompt needs, as a share of what the
            arithmetic units for this type of weight do in that time
of one:     the ratio to one process: of decode in the turn beside it, in the middle of all turns; of
            the prompt in the same round, in the middle of all rounds
gap:        milliseconds from token to token, in the middle and at the 99th percentile
blocks:     of it, milliseconds of arithmetic in blocks; between: from the client to a block, from
            block to block on other servers, and back: links, waits and wakes; in the middle
wire:       bytes on the loopback device for each token, on all links together, with the headers of
            packets and acknowledgements; what other programs send there counts too. Links between
            processes of one machine go past it, but with --no-local-links";

/// What one contender's samples come to.
struct Row<'a> {
    name: &'a str,
    decode: f64,
    /// Bytes a second that memory gave beside the tokens.
    read: f64,
    decode_of_reading: f64,
    decode_of_one: f64,
    gap_p50: f64,
    gap_p99: f64,
    blocks_ms: f64,
    between_ms: f64,
    wire_bytes: f64,
    prefill: f64,
    prefill_of_units: f64,
    prefill_of_one: f64,
}

impl<'a> Row<'a> {
    /// `one` is the single process.
    fn new(
        arguments: &BenchArguments,
        limits: &Limits,
        contender: &'a Contender,
        one: &Contender,
    ) -> Self {
        let decodes = |contender: &Contender| -> Vec<f64> {
            contender.samples.iter().map(|sample| sample.decode).collect()
        };
        let prefills = |contender: &Contender| -> Vec<f64> {
            contender.samples.iter().map(|sample| sample.prefill).collect()
        };
        let gaps: Vec<_> =
            contender.samples.iter().flat_map(|sample| sample.gaps.iter().copied()).collect();
        let of_tokens = |part: fn(&Sample) -> &Vec<f64>| {
            median(contender.samples.iter().flat_map(|sample| part(sample).iter().copied()))
        };
        let (decode, prefill) = (median(decodes(contender)), median(prefills(contender)));
        let tokens = f64::from(arguments.prompt_tokens);
        let of_reading = contender
            .samples
            .iter()
            .map(|sample| limits.work.of_reading(sample.read, sample.decode, 1.0, past(arguments)));
        let wire = least(contender.samples.iter().filter_map(|sample| sample.wire_bytes));
        let Limits { machine, work, .. } = limits;
        Self {
            name: &contender.name,
            decode,
            read: median(contender.samples.iter().map(|sample| sample.read)),
            decode_of_reading: median(of_reading),
            decode_of_one: decode_ratio(&contender.samples, &one.samples),
            gap_p50: quantile_ms(&gaps, 0.5),
            gap_p99: quantile_ms(&gaps, 0.99),
            blocks_ms: of_tokens(|sample| &sample.blocks_ms),
            between_ms: of_tokens(|sample| &sample.between_ms),
            wire_bytes: wire.unwrap_or(f64::NAN),
            prefill,
            prefill_of_units: work.prompt_of_arithmetic(machine, prefill, tokens),
            prefill_of_one: median_ratio(prefills(contender), prefills(one)),
        }
    }

    fn as_text(&self) -> String {
        format!(
            "{:<12}  {:>9}  {:>10}  {:>6}  {:>6}  {:>6}  {:>6}  {:>7}  {:>7}  {:>9}  {:>8}  {:>6}",
            self.name,
            cell(self.decode, 2),
            percent(self.decode_of_reading),
            cell(self.decode_of_one, 3),
            cell(self.gap_p50, 1),
            cell(self.gap_p99, 1),
            cell(self.blocks_ms, 2),
            cell(self.between_ms, 2),
            cell(self.wire_bytes, 0),
            cell(self.prefill, 1),
            percent(self.prefill_of_units),
            cell(self.prefill_of_one, 3),
        )
    }

    fn as_json(&self) -> serde_json::Value {
        json!({
            "name": self.name,
            "decode_tokens_per_second": self.decode,
            "read_bytes_per_second": self.read,
            "decode_of_read_limit": self.decode_of_reading,
            "decode_of_local": self.decode_of_one,
            "gap_ms": { "p50": self.gap_p50, "p99": self.gap_p99 },
            "blocks_ms": self.blocks_ms,
            "between_ms": self.between_ms,
            "wire_bytes_per_token": self.wire_bytes,
            "prefill_tokens_per_second": self.prefill,
            "prefill_of_arithmetic_limit": self.prefill_of_units,
            "prefill_of_local": self.prefill_of_one,
        })
    }
}

/// Tokens that a step of decode looks back on, itself among them, on average: the first follows the
/// prompt and one new token.
pub(super) fn past(arguments: &BenchArguments) -> f64 {
    f64::from(arguments.prompt_tokens) + f64::from(arguments.new_tokens) / 2.0
}

/// What memory gave beside the samples.
fn reads_as_text<'a>(samples: impl Iterator<Item = &'a Sample>) -> String {
    let reads: Vec<_> = samples.map(|sample| sample.read / 1e9).collect();
    format!(
        "beside the tokens, for tens of milliseconds: {} GB/s (least {}, most {})",
        cell(median(reads.iter().copied()), 1),
        cell(least(reads.iter().copied()).unwrap_or(f64::NAN), 1),
        cell(reads.iter().copied().fold(f64::NAN, f64::max), 1),
    )
}

fn rows<'a>(
    arguments: &BenchArguments,
    limits: &Limits,
    contenders: &'a [Contender],
) -> Vec<Row<'a>> {
    let row = |contender| Row::new(arguments, limits, contender, &contenders[0]);
    contenders.iter().map(row).collect()
}

pub(super) fn as_text(
    arguments: &BenchArguments,
    limits: &Limits,
    contenders: &[Contender],
) -> String {
    let tokens = f64::from(arguments.prompt_tokens);
    let mut lines = vec![
        limits.machine.as_text(),
        reads_as_text(contenders.iter().flat_map(|contender| &contender.samples)),
        format!(
            "this model at least: {:.0} MB read for a token, {:.0} Gop for the prompt",
            limits.work.step_bytes(1.0, past(arguments)) / 1e6,
            limits.work.prompt_operations(tokens) / 1e9,
        ),
        format!(
            "one client; a prompt of {} tokens, then {} new ones; medians of {} rounds",
            arguments.prompt_tokens, arguments.new_tokens, arguments.rounds
        ),
        String::new(),
        format!(
            "{:<12}  {:>9}  {:>10}  {:>6}  {:>6}  {:>6}  {:>6}  {:>7}  {:>7}  {:>9}  {:>8}  {:>6}",
            "",
            "decode",
            "of reading",
            "of one",
            "gap p50",
            "p99",
            "blocks",
            "between",
            "wire",
            "prefill",
            "of units",
            "of one"
        ),
        format!(
            "{:<12}  {:>9}  {:>10}  {:>6}  {:>6}  {:>6}  {:>6}  {:>7}  {:>7}  {:>9}  {:>8}  {:>6}",
            "", "tokens/s", "", "", "ms", "ms", "ms", "ms", "B/token", "tokens/s", "", ""
        ),
    ];
    let rows = rows(arguments, limits, contenders);
    lines.extend(rows.iter().map(Row::as_text));
    if let Some(llama) = rows.iter().find(|row| row.name == LLAMA) {
        lines.push(format!(
            "one process is {:.2} times as fast as llama.cpp in decode, {:.2} times in prefill",
            1.0 / llama.decode_of_one,
            1.0 / llama.prefill_of_one
        ));
    }
    lines.extend([String::new(), LEGEND.to_owned()]);
    lines.join("\n")
}

pub(super) fn as_json(
    arguments: &BenchArguments,
    limits: &Limits,
    contenders: &[Contender],
) -> String {
    let rows = rows(arguments, limits, contenders);
    json!({
        "machine": limits.machine.as_json(),
        "model": {
            "bytes_per_token": limits.work.step_bytes(1.0, past(arguments)),
            "prompt_operations": limits.work.prompt_operations(f64::from(arguments.prompt_tokens)),
        },
        "results": rows.iter().map(Row::as_json).collect::<Vec<_>>(),
    })
    .to_string()
}
