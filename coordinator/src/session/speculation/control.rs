//! How many drafts the next step carries.

use std::time::Duration;

use super::DRAFT_TOKENS_MAX;
use super::acceptance::Acceptance;
use super::cost::StepCost;

/// By how much drafts must promise to be faster than none: estimates are as uncertain as this.
const GAIN_MIN: f64 = 1.03;

/// The share of the time that may be lost with drafts that do not pay, so that it is noticed when
/// they begin to. Half of the three percent that speculation may cost at most.
const LOSS_SHARE: f64 = 0.015;

/// What may be lost before anything was gained, in steps.
const LOSS_FIRST: f64 = 0.5;

/// Most gains, in steps, that are kept for losses to come: drafts of a long step that goes wrong
/// can cost this much, and a text that turns takes no more of what was won.
const SAVED_MAX: f64 = 8.0;

/// A draft of a model is taken to cost this share of a step before one was made.
const MODEL_DRAFT_SHARE: f64 = 0.25;

/// Of the time of drafts, and of the load, how much the newest says.
const SMOOTHING: f64 = 0.2;

/// The most by which other sessions that wait make a draft dearer: it takes their time as well.
const LOAD_MAX: f64 = 4.0;

/// Drafts of the step that shows what one costs. The guess before it is of arithmetic alone, and on
/// a slow link most of the cost can be the way.
const FIRST_DRAFTS_MAX: u32 = 2;

/// Where drafts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DraftKind {
    /// From the text, of which so many tokens at the end have occurred before.
    Suffix {
        /// How many; at least 1.
        matched: u32,
    },
    /// From a small model.
    Model,
}

/// Drafts that can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Where from.
    pub kind: DraftKind,
    /// How many.
    pub tokens_max: u32,
    /// What has to be done before the first of them can be made, such as reading the text.
    pub overhead: Duration,
}

/// Which drafts to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Where from.
    pub kind: DraftKind,
    /// How many; at least 1.
    pub tokens: u32,
}

/// What came of a step.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// The drafts that it carried, if it did.
    pub drafted: Option<Drafted>,
    /// Its time.
    pub step: StepSample,
}

/// Drafts that were checked.
#[derive(Debug, Clone, Copy)]
pub struct Drafted {
    /// Where from.
    pub kind: DraftKind,
    /// How many.
    pub tokens: u32,
    /// How many of them were right.
    pub accepted: u32,
    /// The time that it took to make them.
    pub took: Duration,
    /// The time that had to be spent before the first of them could be made.
    pub overhead: Duration,
}

/// Where the time of a step went.
#[derive(Debug, Clone, Copy)]
pub struct StepSample {
    /// From the drafts to the tokens.
    pub total: Duration,
    /// Arithmetic of all hops.
    pub compute: Duration,
    /// Time in which hops computed for others first.
    pub queue: Duration,
}

/// Sets the number of drafts so that the most tokens come in a second, as far as one can know.
///
/// It keeps an account of what drafts have won and lost, in seconds, and spends no more than the
/// wins and a small share of all the time. So a text that cannot be guessed costs at most that
/// share, however wrong the estimates of acceptance are.
#[derive(Debug, Clone)]
pub struct DraftControl {
    cost: StepCost,
    acceptance: Acceptance,
    /// Seconds for a draft of a model.
    model_draft: Option<f64>,
    /// Time in queues for each second of arithmetic.
    load: f64,
    /// Seconds that may be lost; `None` before the first step.
    account: Option<f64>,
}

impl Default for DraftControl {
    fn default() -> Self {
        Self::new()
    }
}

impl DraftControl {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            cost: StepCost::default(),
            acceptance: Acceptance::default(),
            model_draft: None,
            load: 0.0,
            account: None,
        }
    }

    /// Which drafts the next step is to carry: those with the best promise where that is more than
    /// a step without them holds, else now and then a single one, to see how things stand.
    #[must_use]
    pub fn choose(&self, offers: &[Offer]) -> Option<Choice> {
        let (plain, account) = (self.cost.plain()?, self.account?);
        let tokens_max = if self.cost.is_measured() { DRAFT_TOKENS_MAX } else { FIRST_DRAFTS_MAX };
        let mut best: Option<(f64, Choice)> = None;
        for offer in offers {
            let mut tokens = 1.0;
            let mut chance = 1.0;
            let affordable = account - offer.overhead.as_secs_f64();
            for index in 0..offer.tokens_max.min(tokens_max) {
                if f64::from(index + 1) * self.draft_seconds(offer.kind, plain) > affordable {
                    break;
                }
                chance *= self.acceptance.chance(offer.kind, index);
                tokens += chance;
                let rate = tokens / self.seconds(offer, index + 1, plain);
                if best.is_none_or(|(best, _)| rate > best) {
                    best = Some((rate, Choice { kind: offer.kind, tokens: index + 1 }));
                }
            }
        }
        let (rate, choice) = best?;
        let pays = rate * plain >= GAIN_MIN;
        Some(if pays { choice } else { Choice { tokens: 1, ..choice } })
    }

    /// Learns from a step.
    pub fn settle(&mut self, outcome: &Outcome) {
        let Outcome { drafted, step } = outcome;
        let (count, accepted) =
            drafted.map_or((0, 0), |drafted| (drafted.tokens, drafted.accepted));
        self.cost.observe(count, step.total, step.compute);
        let (queue, compute) = (step.queue.as_secs_f64(), step.compute.as_secs_f64());
        if compute > 0.0 {
            self.load += SMOOTHING * ((queue / compute).min(LOAD_MAX) - self.load);
        }
        let Some(plain) = self.cost.plain() else {
            return;
        };
        let mut account = self.account.unwrap_or(LOSS_FIRST * plain);
        account += LOSS_SHARE * plain * f64::from(accepted + 1);
        if let Some(drafted) = drafted {
            self.acceptance.observe(drafted.kind, drafted.tokens, drafted.accepted);
            if matches!(drafted.kind, DraftKind::Model) {
                let each = drafted.took.as_secs_f64() / f64::from(drafted.tokens.max(1));
                let known = self.model_draft.get_or_insert(each);
                *known += SMOOTHING * (each - *known);
            }
            // By estimates and not by what this step took: that varies for many reasons.
            account += f64::from(accepted) * plain;
            account -= f64::from(count) * self.cost.draft();
            account -= (drafted.took + drafted.overhead).as_secs_f64();
        }
        self.account = Some(account.min(SAVED_MAX * plain));
    }

    /// Seconds of a step with so many drafts, with those to make them, and with what they take from
    /// others where these wait.
    fn seconds(&self, offer: &Offer, tokens: u32, plain: f64) -> f64 {
        let row = self.cost.draft() * (1.0 + self.load);
        let each = row + self.making(offer.kind, plain);
        f64::from(tokens).mul_add(each, plain + offer.overhead.as_secs_f64())
    }

    /// Seconds that a draft costs this session.
    fn draft_seconds(&self, kind: DraftKind, plain: f64) -> f64 {
        self.cost.draft() + self.making(kind, plain)
    }

    fn making(&self, kind: DraftKind, plain: f64) -> f64 {
        match kind {
            DraftKind::Suffix { .. } => 0.0,
            DraftKind::Model => self.model_draft.unwrap_or(MODEL_DRAFT_SHARE * plain),
        }
    }
}
