//! Kills a server of a real swarm at a random moment of a training, again and again, and compares what
//! is learned with what one process learns, bit for bit:
//! `cargo run --release -p umbel-tests --example training_kills -- 0..30` takes the seeds, behind
//! `cargo build --release -p umbel-tests`, which builds the servers.

#![allow(clippy::print_stdout, reason = "what it finds is what it is for")]

use anyhow::{Context as _, ensure};
use umbel_tests::training::{Kills, Lesson};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let seeds = std::env::args().nth(1).unwrap_or_else(|| "0..30".to_owned());
    let (first, end) = seeds.split_once("..").context("seeds as 0..30")?;
    let seeds = first.parse::<u64>()?..end.parse::<u64>()?;
    let (runs, mut failed) = (seeds.clone().count(), 0);
    let mut kills = Kills::start(Lesson::new()).await?;
    println!("{:>4} {:>6} {:>6} {:>8} {:>8}", "seed", "routes", "server", "answers", "µs");
    for seed in seeds {
        match kills.run(seed).await {
            Ok(kill) => {
                let micros = kill.delay.as_micros();
                let server = format!("{}.{}", kill.route, kill.place);
                println!(
                    "{seed:>4} {:>6} {server:>6} {:>8} {micros:>8}",
                    kill.routes, kill.answers
                );
            }
            Err(error) => {
                failed += 1;
                println!("{seed:>4} {error:#}");
                // A server may be lost to the runs behind it.
                kills = Kills::start(Lesson::new()).await?;
            }
        }
    }
    kills.assert_no_errors();
    println!("{} of {runs} came to the same bits with one replacement", runs - failed);
    ensure!(failed == 0, "{failed} runs came to something else");
    Ok(())
}
