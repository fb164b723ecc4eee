//! What a server counts.

use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::announce::Offer;
use crate::driver::Load;

/// What happens, counted as it does. Clones count the same.
#[derive(Debug, Clone)]
pub struct Counters {
    sessions: Gauge,
    opened: Counter,
    passes: Counter,
    tokens: Counter,
    pass_seconds: Histogram,
    pushes_failed: Counter,
    violations: Counter,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            sessions: Gauge::default(),
            opened: Counter::default(),
            passes: Counter::default(),
            tokens: Counter::default(),
            // From a token through a few small blocks to a long prompt through large ones.
            pass_seconds: Histogram::new(exponential_buckets(0.000_5, 2.0, 16)),
            pushes_failed: Counter::default(),
            violations: Counter::default(),
        }
    }
}

impl Counters {
    /// Lets Prometheus see them.
    pub fn register(&self, registry: &mut Registry) {
        let registry = super::own(registry);
        registry.register("sessions", "Sessions that are open", self.sessions.clone());
        registry.register(
            "sessions_opened",
            "Sessions, when room is made for them",
            self.opened.clone(),
        );
        registry.register("passes", "Passes, when the engine is given one", self.passes.clone());
        let help =
            "Tokens that went through the blocks, when their pass begins; replays count again";
        registry.register("tokens", help, self.tokens.clone());
        let help = "Arithmetic of a pass, when it is over";
        registry.register("pass_seconds", help, self.pass_seconds.clone());
        let help = "Results that could not be handed to the next server";
        registry.register("pushes_failed", help, self.pushes_failed.clone());
        let help = "Links that were closed since their peer broke the protocol";
        registry.register("protocol_violations", help, self.violations.clone());
    }

    /// So many sessions are open.
    pub(crate) fn sessions(&self, count: usize) {
        self.sessions.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn session_opened(&self) {
        self.opened.inc();
    }

    pub(crate) fn pass_begun(&self, tokens: u64) {
        self.passes.inc();
        self.tokens.inc_by(tokens);
    }

    pub(crate) fn pass_over(&self, compute: Duration) {
        self.pass_seconds.observe(compute.as_secs_f64());
    }

    pub(crate) fn push_failed(&self) {
        self.pushes_failed.inc();
    }

    pub(crate) fn violation(&self) {
        self.violations.inc();
    }
}

/// What passes have waited for of trainings. Clones count the same.
#[derive(Debug, Clone)]
pub struct Waits {
    parts: Counter,
    passes: Counter,
    seconds: Histogram,
}

impl Default for Waits {
    fn default() -> Self {
        // From what a small matrix takes to a long wait on a machine that is too busy.
        let seconds = Histogram::new(exponential_buckets(0.000_1, 2.0, 16));
        Self { parts: Counter::default(), passes: Counter::default(), seconds }
    }
}

impl Waits {
    /// Lets Prometheus see them.
    pub fn register(&self, registry: &mut Registry) {
        let registry = super::own(registry);
        let help = "Passes that found a training at work, when they begin";
        registry.register("passes_waited", help, self.passes.clone());
        let help = "Parts of trainings that passes have waited for, when the pass begins: at most one each";
        registry.register("training_parts_waited", help, self.parts.clone());
        let help = "How long a pass has waited for a training, when it begins";
        registry.register("pass_wait_seconds", help, self.seconds.clone());
    }

    /// A pass begins, which has waited for so many parts of trainings.
    pub(crate) fn pass_has_waited(&self, parts: u64, waited: Duration) {
        self.passes.inc();
        self.parts.inc_by(parts);
        self.seconds.observe(waited.as_secs_f64());
    }

    #[cfg(test)]
    pub(crate) fn parts(&self) -> u64 {
        self.parts.get()
    }

    #[cfg(test)]
    pub(crate) fn passes(&self) -> u64 {
        self.passes.get()
    }
}

/// What a server offers and how busy it is, looked up when Prometheus asks.
#[derive(Debug)]
pub struct State {
    /// How busy.
    pub load: watch::Receiver<Load>,
    /// What it offers.
    pub offer: watch::Receiver<Offer>,
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let load = *self.load.borrow();
        let offer = self.offer.borrow().clone();
        let gauges = [
            (
                "kv_tokens_free",
                "Tokens that no session has reserved",
                f64::from(load.kv_tokens_free),
            ),
            ("queue_depth", "Steps that wait or are computed", f64::from(load.queue_depth)),
            ("pages_kept", "Pages that are kept for later sessions", load.pages_kept as f64),
            ("blocks", "Blocks that are served", f64::from(offer.span.block_count())),
            ("first_block", "The first of them", f64::from(offer.span.start())),
            ("model_blocks", "Blocks of the model", f64::from(offer.block_count)),
            ("draining", "1 while the server leaves", f64::from(u8::from(offer.draining))),
            (
                "decode_block_seconds",
                "What one token takes through one block, smoothed; 0 before the first",
                load.decode_per_block.unwrap_or_default().as_secs_f64(),
            ),
        ];
        for (name, help, value) in gauges {
            let name = format!("umbel_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
impl State {
    /// The state of a server that serves two of four blocks.
    pub(super) fn example() -> Self {
        use umbel_coordinator::swarm::placement::Intention;
        use umbel_protocol::announcement::Throughput;
        use umbel_protocol::{ModelId, Span};

        let load =
            Load { kv_tokens_free: 5, queue_depth: 1, decode_per_block: None, pages_kept: 0 };
        let offer = Offer {
            model: ModelId::from_bytes([0; 32]),
            model_name: "a-model".to_owned(),
            span: Span::new(0, 2).unwrap(),
            block_count: 4,
            throughput: Throughput::default(),
            intention: Intention::default(),
            draining: false,
            holds_ends: true,
        };
        Self {
            load: watch::Sender::new(load).subscribe(),
            offer: watch::Sender::new(offer).subscribe(),
        }
    }
}
