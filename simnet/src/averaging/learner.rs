//! What a trainer learns in this world: the way down a bowl whose bottom its own data puts somewhere else
//! than that of others, by steps that noise makes uneven.

use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::random::Random;
use umbel_coordinator::training::round::RunState;

use crate::seed::Seed;

/// Values of the adapter: more than share a scale, and few enough for many runs.
const VALUES: usize = 300;

/// By how much the bottoms of trainers differ, where that of all is one unit away in each value.
const HETEROGENEITY: f32 = 0.3;

/// The noise of a step's gradient.
const NOISE: f32 = 0.2;

/// How far a step goes, and what the flattest and the steepest direction make of it.
const LEARNING_RATE: f32 = 0.05;
const CURVATURES: (f32, f32) = (0.2, 1.0);

/// How long a step takes the fastest and the slowest trainer.
const STEP_TIMES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));

/// What a garbled value may be, beside changes that are a fraction of one in a round.
const GARBAGE: f32 = 1_000.0;

/// What a trainer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// What it has learned.
    Honest,
    /// Large values without a meaning.
    Garbage,
    /// The reverse of what it has learned.
    SignFlipped,
}

/// What is to be learned by all together.
pub(super) struct Problem {
    seed: Seed,
    bottom: Vec<f32>,
    curvature: Vec<f32>,
}

impl Problem {
    pub(super) fn draw(seed: Seed) -> Self {
        let mut random = seed.stream("problem");
        let bottom = (0..VALUES).map(|_| if random.unit() < 0.5 { -1.0 } else { 1.0 }).collect();
        let (flat, steep) = CURVATURES;
        let curvature = (0..VALUES).map(|_| flat + (steep - flat) * unit(&mut random)).collect();
        Self { seed, bottom, curvature }
    }

    pub(super) fn value_count(&self) -> usize {
        self.bottom.len()
    }

    /// How far values are from the bottom, as a share of how far zero is.
    pub(super) fn error(&self, values: &[f32]) -> f64 {
        super::distance(values, &self.bottom)
    }

    pub(super) fn learner(&self, index: usize, nature: Nature) -> Learner {
        let mut random = self.seed.stream(&format!("trainer {index}"));
        let bottom = self.bottom.iter().map(|v| v + HETEROGENEITY * normal(&mut random)).collect();
        let (fast, slow) = STEP_TIMES;
        let step_time = fast + (slow - fast).mul_f64(random.unit());
        let curvature = self.curvature.clone();
        let (start, begun) = (None, Time::START);
        Learner { nature, bottom, curvature, step_time, random, start, begun }
    }
}

/// One trainer.
pub(super) struct Learner {
    nature: Nature,
    bottom: Vec<f32>,
    curvature: Vec<f32>,
    step_time: Duration,
    random: Random,
    /// The round in which it is, and the values with which it began.
    start: Option<(u64, Vec<f32>)>,
    begun: Time,
}

impl Learner {
    pub(super) const fn nature(&self) -> Nature {
        self.nature
    }

    pub(super) const fn step_time(&self) -> Duration {
        self.step_time
    }

    pub(super) fn begin(&mut self, state: &RunState, now: Time) {
        self.start = Some((state.round(), state.values().to_vec()));
        self.begun = now;
    }

    /// What it tells of a round: as many steps as it takes in the time to learn. `None` where it is in
    /// another one by now.
    pub(super) fn learned(&mut self, round: u64) -> Option<Vec<f32>> {
        let (_, start) = self.start.as_ref().filter(|(of, _)| *of == round)?;
        let start = start.clone();
        if self.nature == Nature::Garbage {
            let garbage = |value: &f32| value + GARBAGE * (2.0 * unit(&mut self.random) - 1.0);
            return Some(start.iter().map(garbage).collect());
        }
        let mut values = start.clone();
        let steps = super::LEARN.as_millis() / self.step_time.as_millis();
        for _ in 0..steps {
            let places = values.iter_mut().zip(&self.bottom).zip(&self.curvature);
            for ((value, bottom), curvature) in places {
                let gradient = curvature * (*value - bottom) + NOISE * normal(&mut self.random);
                *value -= LEARNING_RATE * gradient;
            }
        }
        if self.nature == Nature::SignFlipped {
            return Some(start.iter().zip(&values).map(|(start, end)| 2.0 * start - end).collect());
        }
        Some(values)
    }
}

fn unit(random: &mut Random) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "chance needs no more digits")]
    let unit = random.unit() as f32;
    unit
}

/// Something like a normal distribution, of mean 0 and variance 1: the sum of three.
fn normal(random: &mut Random) -> f32 {
    2.0 * ((0..3).map(|_| unit(random)).sum::<f32>() - 1.5)
}
