//! What is told of many clients.

use serde_json::json;

use super::super::Limits;
use super::super::report::past;
use super::super::sample::{cell, least, median, median_ratio, percent, quantile_ms};
use super::Row;
use crate::args::BenchArguments;

/// What the columns say.
const LEGEND: &str = "\
of first:   the ratio to the first line
of reading: the bytes that these tokens need (every weight once for all clients, and the keys and
            values of each) as a share of what the machine read from memory before and after, for as
            long as a few tokens take
of units:   the multiplications and additions that they need, as a share of what the arithmetic units
            for this type of weight do in that time
gap:        milliseconds from token to token of a client, in the middle and at the 99th percentile
wire:       bytes on the loopback device for each token, on all links together, with the headers of
            packets and acknowledgements; what other programs send there counts too
while read: the gaps of the clients while one more reads a long prompt, and the seconds that it takes";

/// Shares of the limits and ratios, for a person and for a program alike.
struct Told {
    of_first: f64,
    of_reading: f64,
    of_units: f64,
    wire_bytes: f64,
    llama: f64,
    times_llama: f64,
}

impl Told {
    fn of(arguments: &BenchArguments, limits: &Limits, row: &Row, first: &Row) -> Self {
        let (rate, past, Limits { machine, work, .. }) = (row.rate(), past(arguments), limits);
        let clients = f64::from(row.clients);
        let rounds = row.reads.iter().zip(&row.rates);
        let of_reading = rounds.map(|(read, rate)| work.of_reading(*read, *rate, clients, past));
        Self {
            of_first: rate / first.rate(),
            of_reading: median(of_reading),
            of_units: work.of_arithmetic(machine, rate, past),
            wire_bytes: least(row.wire_bytes.iter().copied()).unwrap_or(f64::NAN),
            llama: median(row.llama_rates.iter().copied()),
            times_llama: median_ratio(row.rates.iter().copied(), row.llama_rates.iter().copied()),
        }
    }
}

/// The headings, and the units below them.
const HEADINGS: [[&str; 2]; 13] = [
    ["clients", ""],
    ["decode", "tokens/s"],
    ["of first", ""],
    ["of reading", ""],
    ["of units", ""],
    ["gap p50", "ms"],
    ["p99", "ms"],
    ["wire", "B/token"],
    ["while read", "gap p50 ms"],
    ["p99", "ms"],
    ["took", "s"],
    ["llama.cpp", "tokens/s"],
    ["times it", ""],
];

pub(super) fn as_text(arguments: &BenchArguments, limits: &Limits, rows: &[Row]) -> String {
    let line = |cells: [String; 13]| {
        let padded = cells.iter().zip(HEADINGS).map(|(cell, [heading, unit])| {
            let width = heading.len().max(unit.len()).max(7);
            format!("{cell:>width$}")
        });
        padded.collect::<Vec<_>>().join("  ")
    };
    let mut lines = vec![
        limits.machine.as_text(),
        format!(
            "a swarm of {} on this machine; prompts of {} tokens, then {} new ones; medians of {} \
             rounds; the long prompt has {} tokens",
            arguments.servers.first().copied().unwrap_or(1),
            arguments.prompt_tokens,
            arguments.new_tokens,
            arguments.rounds,
            arguments.reader_tokens
        ),
        String::new(),
        line(HEADINGS.map(|[heading, _]| heading.to_owned())),
        line(HEADINGS.map(|[_, unit]| unit.to_owned())),
    ];
    lines.extend(rows.iter().map(|row| line(cells(arguments, limits, row, &rows[0]))));
    lines.extend([String::new(), LEGEND.to_owned()]);
    lines.join("\n")
}

fn cells(arguments: &BenchArguments, limits: &Limits, row: &Row, first: &Row) -> [String; 13] {
    let told = Told::of(arguments, limits, row, first);
    [
        row.clients.to_string(),
        cell(row.rate(), 2),
        cell(told.of_first, 2),
        percent(told.of_reading),
        percent(told.of_units),
        cell(quantile_ms(&row.gaps, 0.5), 1),
        cell(quantile_ms(&row.gaps, 0.99), 1),
        cell(told.wire_bytes, 0),
        cell(quantile_ms(&row.reading.gaps, 0.5), 1),
        cell(quantile_ms(&row.reading.gaps, 0.99), 1),
        cell(row.reading.seconds(), 1),
        cell(told.llama, 2),
        cell(told.times_llama, 2),
    ]
}

pub(super) fn as_json(arguments: &BenchArguments, limits: &Limits, rows: &[Row]) -> String {
    let gaps =
        |gaps: &[_]| json!({ "p50": quantile_ms(gaps, 0.5), "p99": quantile_ms(gaps, 0.99) });
    let results: Vec<_> = rows
        .iter()
        .map(|row| {
            let told = Told::of(arguments, limits, row, &rows[0]);
            json!({
                "clients": row.clients,
                "tokens_per_second": row.rate(),
                "of_first": told.of_first,
                "of_read_limit": told.of_reading,
                "of_arithmetic_limit": told.of_units,
                "gap_ms": gaps(&row.gaps),
                "wire_bytes_per_token": told.wire_bytes,
                "while_reading": {
                    "prompt_tokens": arguments.reader_tokens,
                    "seconds": row.reading.seconds(),
                    "gap_ms": gaps(&row.reading.gaps),
                },
                "llama_cpp_tokens_per_second": told.llama,
                "times_llama_cpp": told.times_llama,
            })
        })
        .collect();
    json!({ "machine": limits.machine.as_json(), "results": results }).to_string()
}
