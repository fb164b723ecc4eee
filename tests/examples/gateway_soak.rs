//! Many clients stream from a gateway in front of three servers, and a fifth of the answers is left
//! in the middle: `cargo run -p umbel-tests --example gateway_soak -- 120 100 16 64` takes the
//! seconds, the clients, the answers at once, and the requests that may wait for their turn.

#![allow(clippy::print_stdout, reason = "what it measures is what it is for")]

use std::time::Duration;

use umbel_tests::soak::{Load, Outcome, quantile, run};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<usize> =
        std::env::args().skip(1).map(|argument| argument.parse()).collect::<Result<_, _>>()?;
    let argument = |index: usize, otherwise| arguments.get(index).copied().unwrap_or(otherwise);
    let load = Load {
        clients: argument(1, 100),
        duration: Duration::from_secs(argument(0, 120) as u64),
        answers: argument(2, 16),
        waiting: argument(3, 64),
        answer_tokens: 32,
        // An answer takes some 80 tokens with its prompt, in whole pages; a fifth as many more are
        // kept of earlier ones.
        kv_tokens: 2_048.max(128 * argument(2, 16)),
    };
    println!("{load:?}");
    print(&run(&load)?);
    Ok(())
}

fn print(outcome: &Outcome) {
    let notes = &outcome.notes;
    println!(
        "{} answers whole, {} left in the middle, {} told to come back; {} sessions opened, the last \
         of them ended {:.1} s after the last client",
        notes.whole,
        notes.left,
        notes.turned_away,
        outcome.sessions_opened,
        outcome.ending.as_secs_f64()
    );
    println!("hops that lost their places, and why: {:?}", outcome.given_up);
    for (name, values) in
        [("time to first token", &notes.first_token), ("gap between tokens", &notes.gaps)]
    {
        let at = |part| quantile(values, part).as_secs_f64() * 1e3;
        println!(
            "{name}: p50 {:.0} ms, p99 {:.0} ms, longest {:.0} ms, of {}",
            at(0.5),
            at(0.99),
            at(1.0),
            values.len()
        );
    }
    let names = ["gateway", "server 0..10", "server 10..20", "server 20..30"];
    for (name, bytes) in names.iter().zip(&outcome.resident) {
        let megabytes: Vec<_> = bytes.iter().map(|bytes| bytes / 1_000_000).collect();
        println!("resident MB of no file, {name}: {megabytes:?}");
    }
}
