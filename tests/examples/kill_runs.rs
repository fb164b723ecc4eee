//! Kills and freezes servers of a real swarm while it answers, and says how long each answer stood
//! still: `cargo run --release -p umbel-tests --example kill_runs -- 0..50 512 [standby] [log]`
//! takes the seeds and the tokens of the prompt.

#![allow(clippy::print_stdout, reason = "what it measures is what it is for")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use umbel_coordinator::random::Random;
use umbel_tests::faults::{Fault, Replicated};
use umbel_tests::workload::Workload;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let (seeds, prompt) = match arguments.as_slice() {
        [seeds, prompt, ..] => (seeds.as_str(), prompt.as_str()),
        _ => ("0..50", "512"),
    };
    let (first, end) = seeds.split_once("..").context("seeds as 0..50")?;
    let seeds = first.parse::<u64>()?..end.parse::<u64>()?;
    let (runs, prompt, standby) = (seeds.clone().count(), prompt.parse::<u32>()?, has("standby"));
    if has("log") {
        umbel_node::telemetry::start(Some("umbel=debug"), umbel_node::args::LogFormat::Text);
    }
    let mut swarm = Replicated::start("smollm2-135m", &["0..10", "10..20", "20..30"]).await?;
    let prompt = (0..prompt).map(|i| 1_000 + i * 7_919 % 40_000).collect();
    let workload = Workload { prompt, tokens: 24, prefill_chunk: 128, standby };
    let expected = swarm.undisturbed(&workload).await?;
    let heads = ["gap ms", "noticed", "usual ms"];
    println!("{:>4} {:24} {:>9} {:>9} {:>9} hops", "seed", "fault", heads[0], heads[1], heads[2]);
    let (mut gaps, mut noticed, mut different) = (Vec::new(), Vec::new(), 0);
    for seed in seeds {
        let fault = Fault::of_run(seed);
        let outcome = swarm.run(&workload, fault, &mut Random::new(seed)).await;
        swarm.restore().await?;
        let outcome = outcome.with_context(|| format!("seed {seed}: {fault}"))?;
        let same = outcome.tokens == expected;
        different += usize::from(!same);
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        println!(
            "{seed:>4} {:24} {:>9.1} {:>9.1} {:>9.1} {:>4}{}",
            fault.to_string(),
            ms(outcome.gap),
            ms(outcome.noticed),
            ms(outcome.usual),
            outcome.failures,
            if same { "" } else { "  ANOTHER ANSWER" },
        );
        if !matches!(fault, Fault::KillDuringPrefill(_)) {
            gaps.push(outcome.gap);
            noticed.push(outcome.noticed);
        }
    }
    let quantile = |durations: &mut Vec<Duration>, share: f64| {
        durations.sort();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = (share * (durations.len().max(1) - 1) as f64).round() as usize;
        durations.get(index).map_or(0.0, |duration| duration.as_secs_f64() * 1e3)
    };
    println!(
        "gap p50 {:.0} ms, p99 {:.0} ms; noticed p50 {:.0} ms, p99 {:.0} ms; identical answers: {} of \
         {runs}",
        quantile(&mut gaps, 0.5),
        quantile(&mut gaps, 0.99),
        quantile(&mut noticed, 0.5),
        quantile(&mut noticed, 0.99),
        runs - different
    );
    ensure!(different == 0, "{different} answers differ");
    Ok(())
}
