//! What a gateway counts.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What happens, counted as it does. Clones count the same.
#[derive(Debug, Clone)]
pub struct Counters {
    requests: Family<Asked, Counter>,
    answers: Gauge,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    failed: Counter,
    first_token_seconds: Histogram,
    token_seconds: Histogram,
}

/// What requests are told apart by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    /// As the interface names it, so that nobody can make up new ones.
    path: String,
    status: u16,
}

/// An answer under way, which is counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Answer {
    counters: Counters,
    begun: Instant,
    last: Option<Instant>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            answers: Gauge::default(),
            prompt_tokens: Counter::default(),
            completion_tokens: Counter::default(),
            failed: Counter::default(),
            first_token_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
            token_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
        }
    }
}

impl Counters {
    /// Lets Prometheus see them.
    pub fn register(&self, registry: &mut Registry) {
        let registry = super::own(registry).sub_registry_with_prefix("gateway");
        let help = "Requests, when the head of the response is there";
        registry.register("requests", help, self.requests.clone());
        registry.register("answers", "Answers under way", self.answers.clone());
        let help = "Tokens of prompts, when their answer begins";
        registry.register("prompt_tokens", help, self.prompt_tokens.clone());
        let help = "Tokens of answers, as they come";
        registry.register("completion_tokens", help, self.completion_tokens.clone());
        let help = "Answers that ended too early, other than by who asked";
        registry.register("answers_failed", help, self.failed.clone());
        let help = "From a turn to the first token of an answer, when it is there";
        registry.register("first_token_seconds", help, self.first_token_seconds.clone());
        let help =
            "From one token of an answer to the next; of several at once the others take none";
        registry.register("token_seconds", help, self.token_seconds.clone());
    }

    /// An answer to a prompt of so many tokens begins.
    pub(crate) fn answer(&self, prompt_tokens: usize) -> Answer {
        self.prompt_tokens.inc_by(prompt_tokens as u64);
        self.answers.inc();
        Answer { counters: self.clone(), begun: Instant::now(), last: None }
    }
}

impl Answer {
    pub(crate) fn token(&mut self) {
        let now = Instant::now();
        let seconds = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
        match self.last.replace(now) {
            None => self.counters.first_token_seconds.observe(seconds(self.begun)),
            Some(last) => self.counters.token_seconds.observe(seconds(last)),
        }
        self.counters.completion_tokens.inc();
    }

    pub(crate) fn failed(&self) {
        self.counters.failed.inc();
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.counters.answers.dec();
    }
}

/// Counts a request by what it is answered.
pub(crate) async fn count(
    State(counters): State<Counters>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or("elsewhere", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    counters.requests.get_or_create(&Asked { path, status }).inc();
    response
}

#[cfg(test)]
impl Counters {
    /// With a request, since a family without one says nothing.
    pub(super) fn example() -> Self {
        let counters = Self::default();
        counters.requests.get_or_create(&Asked { path: "/".to_owned(), status: 200 }).inc();
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_while_it_is_there_and_its_tokens_stay() {
        let counters = Counters::default();
        let mut answer = counters.answer(7);
        answer.token();
        answer.token();
        assert_eq!((counters.answers.get(), counters.completion_tokens.get()), (1, 2));
        drop(answer);
        assert_eq!((counters.answers.get(), counters.prompt_tokens.get()), (0, 7));
    }
}
