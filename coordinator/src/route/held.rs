//! Whether a session goes once more along a route whose servers hold what it begins with.

use umbel_protocol::Span;

use super::Route;
use super::graph::Graph;
use super::plan::visits_of;

/// How many tokens of a prompt a server reads in the time in which it decodes one: 7 to 20 by the
/// figures that servers announce.
const READ_PER_DECODED: f64 = 15.0;

/// Tokens of an answer for which a route is chosen: a few paragraphs.
const ANSWER_TOKENS: f64 = 256.0;

/// How much slower at most a route may be for each token of the answer, whatever it holds: the
/// answer may be longer than that.
const SLOWER_MAX: f64 = 0.5;

/// A route, and what its servers hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPrefix {
    /// Who computed which blocks: keys and values are held of these alone.
    pub route: Route,
    /// Tokens at the beginning of the session.
    pub tokens: u32,
}

impl HeldPrefix {
    /// What the route visits, where its servers are there, and the time that they save is no less
    /// than what they take longer than those of the best route.
    pub(super) fn worthwhile(
        &self,
        graph: &Graph,
        best: &[(usize, Span)],
    ) -> Option<Vec<(usize, Span)>> {
        let visits =
            visits_of(graph, &self.route).filter(|_| self.route.blocks() == graph.blocks)?;
        let saved = f64::from(self.tokens) / READ_PER_DECODED / ANSWER_TOKENS;
        let most = graph.seconds(best) * (1.0 + saved.min(SLOWER_MAX));
        (graph.seconds(&visits) <= most).then_some(visits)
    }
}
