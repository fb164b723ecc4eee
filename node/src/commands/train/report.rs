//! What a training shows: a bar or lines for people, and metrics as JSON lines.

use std::io::{IsTerminal as _, stderr};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use umbel_client::train::StepReport;
use umbel_client::train::run::RunStep;
use umbel_client::train::together::RoundBegun;

use super::metrics::{METRICS_FILE, Metrics};
use crate::telemetry::say;

/// Where nobody watches, a line for each of so many steps.
const LINE_STEPS: u64 = 10;

pub(super) struct Reporter {
    metrics: Metrics,
    /// A line could not be written, and it was said.
    unwritten: bool,
    bar: Option<ProgressBar>,
    started: Instant,
    tokens: usize,
    /// The first and the last validation.
    validation: Option<(f64, f64)>,
}

impl Reporter {
    /// Adds to what an earlier part of the training has written, where it `resumes`.
    pub(super) fn new(
        folder: &Path,
        resumes: bool,
        (done, steps): (u64, u64),
    ) -> anyhow::Result<Self> {
        let metrics = Metrics::open(folder, resumes).with_context(|| {
            format!("{} cannot be written", folder.join(METRICS_FILE).display())
        })?;
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps).with_position(done);
            let template = "step {pos}/{len} [{bar:30}] {msg} {eta}";
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.expect("the template is well-formed"));
            bar
        });
        let (started, tokens, unwritten) = (Instant::now(), 0, false);
        Ok(Self { metrics, unwritten, bar, started, tokens, validation: None })
    }

    pub(super) fn stepped(&mut self, step: RunStep, replaced: usize) {
        let RunStep { step: number, of, epoch, learning_rate, report } = step;
        self.tokens += report.tokens;
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = self.tokens as f64 / seconds.max(f64::EPSILON);
        self.write(&json!({
            "step": number,
            "steps": of,
            "epoch": epoch,
            "loss": report.loss,
            "learning_rate": learning_rate,
            "gradient_norm": report.gradient_norm,
            "tokens": report.tokens,
            "targets": report.targets,
            "tokens_per_second": rate,
            "seconds": seconds,
            "servers_replaced": replaced,
        }));
        let line = format!("loss {:.4} {rate:.0} tokens/s", report.loss);
        match &self.bar {
            Some(bar) => {
                bar.set_position(number);
                bar.set_message(line);
            }
            None if number.is_multiple_of(LINE_STEPS) || number == 1 => {
                say(format_args!("step {number}/{of} {line}"));
            }
            None => {}
        }
    }

    pub(super) fn validated(&mut self, step: u64, report: StepReport) {
        let first = self.validation.map_or(report.loss, |(first, _)| first);
        self.validation = Some((first, report.loss));
        self.write(&json!({
            "step": step,
            "validation_loss": report.loss,
            "validation_targets": report.targets,
        }));
        let line = format!("step {step} validation loss {:.4}", report.loss);
        match &self.bar {
            Some(bar) => bar.println(line),
            None => say(line),
        }
    }

    /// A round with other trainers has begun. Where two have the same round and state, they have the same
    /// adapter.
    pub(super) fn round_begun(&mut self, begun: RoundBegun) {
        let RoundBegun { stand, members } = begun;
        let state: String = stand.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.write(&json!({ "round": stand.round, "state": state, "members": members }));
        let line = format!("round {} of {members} trainers", stand.round);
        match &self.bar {
            Some(bar) => bar.println(line),
            None => say(line),
        }
    }

    /// Says where the adapter is, and of which of the steps.
    pub(super) fn finish(&mut self, folder: &Path, steps: u64, chosen: u64) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if let Some((first, last)) = self.validation {
            say(format_args!(
                "validation loss {first:.4} at the first look, {last:.4} at the last"
            ));
        }
        if chosen < steps {
            say(format_args!(
                "the best validation was behind step {chosen} of {steps}, which is kept"
            ));
        }
        say(format_args!("the adapter is in {}", folder.display()));
    }

    /// Metrics are worth less than the training that they are of: it goes on where the disk is full.
    fn write(&mut self, line: &Value) {
        match self.metrics.write(line) {
            Ok(()) => self.unwritten = false,
            Err(error) if !self.unwritten => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "metrics cannot be written");
                self.unwritten = true;
            }
            Err(_) => {}
        }
    }
}
