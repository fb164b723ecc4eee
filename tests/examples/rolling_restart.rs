//! Restarts every server of a real swarm in turn while clients generate throughout, and says what
//! they noticed: `cargo run -p umbel-tests --example rolling_restart -- 4 [standby]` takes the number
//! of clients.

#![allow(clippy::print_stdout, reason = "what it measures is what it is for")]

use std::sync::Arc;
use std::time::Instant;

use umbel_tests::clients::{Clients, Question};
use umbel_tests::faults::Replicated;
use umbel_tests::workload::Workload;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let clients = arguments.first().map_or(Ok(4), |count| count.parse::<usize>())?;
    let standby = arguments.iter().any(|argument| argument == "standby");
    let spans = ["0..10", "10..20", "20..30"];
    let mut swarm = Replicated::start("smollm2-135m", &spans).await?;
    let prompt = (0..64).map(|i| 1_000 + i * 7_919 % 40_000).collect();
    let workload = Workload { prompt, tokens: 48, prefill_chunk: 128, standby };
    let expected = swarm.undisturbed(&workload).await?;
    let question = Question { model: Arc::clone(swarm.model()), workload, expected };
    let mut swarms = Vec::new();
    for _ in 0..clients {
        swarms.push(swarm.join().await?);
    }

    // First nothing is done, for comparison.
    let begun = Instant::now();
    let asking = Clients::start(swarms.clone(), &question);
    let calm = asking.stop().await?;
    println!("undisturbed: {calm:?} in {:.1} s", begun.elapsed().as_secs_f64());

    let mut asking = Clients::start(swarms, &question);
    let begun = Instant::now();
    for number in 1..=2 * spans.len() {
        // Every client is in the middle of something.
        asking.go_on(16 * clients).await;
        let restart = Instant::now();
        swarm.restart_oldest().await?;
        println!("server {number} restarted in {:.1} s", restart.elapsed().as_secs_f64());
    }
    let answers = asking.stop().await?;
    println!("restarted in turn: {answers:?} in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}
