//! The programs of llama.cpp that measure, on the same file and with as many threads.
//!
//! `llama-bench` and `llama-batched-bench` of <https://github.com/ggml-org/llama.cpp>. Each call loads
//! the file anew and warms up by itself.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::process::Command;

use super::sample::Sample;

/// Room for keys and values comes in lots of so many tokens for each client.
const CONTEXT_LOT_TOKENS: u32 = 256;

/// Lines of what a program said that are shown when it fails.
const SAID_LINES_MAX: usize = 5;

/// A program of llama.cpp, and what it is to measure.
#[derive(Debug)]
pub(super) struct Llama {
    program: PathBuf,
    model: PathBuf,
    threads: usize,
}

/// A measurement of `llama-bench`.
#[derive(Debug, Deserialize)]
struct BenchTest {
    n_prompt: u32,
    n_gen: u32,
    n_depth: u32,
    n_threads: usize,
    avg_ts: f64,
}

/// A measurement of `llama-batched-bench`.
#[derive(Debug, Deserialize)]
struct BatchedTest {
    pp: u32,
    tg: u32,
    pl: u32,
    n_threads: usize,
    speed_pp: f64,
    speed_tg: f64,
}

impl Llama {
    /// `model` is a GGUF file.
    ///
    /// # Errors
    /// Where there is no such program; it is not run yet.
    pub(super) fn new(program: &Path, model: &Path, threads: usize) -> anyhow::Result<Self> {
        if !program.is_file() {
            bail!("{} is no program: build llama.cpp, and name its path", program.display());
        }
        Ok(Self { program: program.to_owned(), model: model.to_owned(), threads })
    }

    /// The rates of one client, by `llama-bench`: a prompt, and tokens after as long a one.
    pub(super) async fn one(&self, prompt: u32, new: u32) -> anyhow::Result<Sample> {
        let prefill = self.test(prompt, 0, 0).await?;
        let decode = self.test(0, new, prompt).await?;
        Ok(Sample { prefill, decode, ..Sample::default() })
    }

    /// The rates of `clients` together, by `llama-batched-bench`.
    pub(super) async fn many(&self, clients: u32, prompt: u32, new: u32) -> anyhow::Result<Sample> {
        let context = clients * (prompt + new).next_multiple_of(CONTEXT_LOT_TOKENS);
        let numbers = [("-npl", clients), ("-npp", prompt), ("-ntg", new), ("-c", context)];
        let mut arguments = vec!["--output-format".to_owned(), "jsonl".to_owned()];
        arguments.extend(numbers.iter().flat_map(|(name, n)| [(*name).to_owned(), n.to_string()]));
        arguments.extend(["-tb".to_owned(), self.threads.to_string()]);
        let said = self.run(&arguments).await?;
        let test = batched_test(&said).with_context(|| self.unreadable())?;
        if (test.pl, test.pp, test.tg) != (clients, prompt, new) {
            bail!("{}: it measured something else", self.unreadable());
        }
        self.check(test.n_threads, &[test.speed_pp, test.speed_tg])?;
        Ok(Sample { prefill: test.speed_pp, decode: test.speed_tg, ..Sample::default() })
    }

    async fn test(&self, prompt: u32, new: u32, depth: u32) -> anyhow::Result<f64> {
        let numbers = [("-p", prompt), ("-n", new), ("-d", depth), ("-r", 1)];
        let mut arguments = vec!["-o".to_owned(), "json".to_owned()];
        arguments.extend(numbers.iter().flat_map(|(name, n)| [(*name).to_owned(), n.to_string()]));
        let said = self.run(&arguments).await?;
        let test = bench_test(&said).with_context(|| self.unreadable())?;
        if (test.n_prompt, test.n_gen, test.n_depth) != (prompt, new, depth) {
            bail!("{}: it measured something else", self.unreadable());
        }
        self.check(test.n_threads, &[test.avg_ts])?;
        Ok(test.avg_ts)
    }

    /// What the program wrote to stdout.
    async fn run(&self, arguments: &[String]) -> anyhow::Result<String> {
        let name = self.program.display();
        let mut command = Command::new(&self.program);
        // No layer on a graphics card: processors are compared.
        command.arg("-m").arg(&self.model).args(["-ngl", "0", "-t", &self.threads.to_string()]);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.with_context(|| format!("cannot run {name}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = &lines[lines.len().saturating_sub(SAID_LINES_MAX)..];
            bail!("{name} failed ({}):\n{}", output.status, last.join("\n"));
        }
        String::from_utf8(output.stdout).with_context(|| self.unreadable())
    }

    fn check(&self, threads: usize, rates: &[f64]) -> anyhow::Result<()> {
        if threads != self.threads {
            bail!("{}: it used {threads} threads, not {}", self.unreadable(), self.threads);
        }
        if rates.iter().any(|rate| !rate.is_finite() || *rate <= 0.0) {
            bail!("{}: a rate is no number of tokens a second", self.unreadable());
        }
        Ok(())
    }

    fn unreadable(&self) -> String {
        format!("what {} printed is no measurement as asked for", self.program.display())
    }
}

/// The one measurement in the JSON of `llama-bench -o json`.
fn bench_test(said: &str) -> anyhow::Result<BenchTest> {
    let tests: Vec<BenchTest> = serde_json::from_str(said)?;
    let count = tests.len();
    let one: Result<[BenchTest; 1], _> = tests.try_into();
    let Ok([test]) = one else {
        bail!("it has {count} measurements instead of one");
    };
    Ok(test)
}

/// The one measurement in the lines of `llama-batched-bench --output-format jsonl`, which has other
/// lines too.
fn batched_test(said: &str) -> anyhow::Result<BatchedTest> {
    let mut lines = said.lines().filter(|line| line.starts_with('{'));
    let line = lines.next().context("it has no line with a measurement")?;
    if lines.next().is_some() {
        bail!("it has several measurements instead of one");
    }
    Ok(serde_json::from_str(line)?)
}

#[cfg(test)]
mod tests;
