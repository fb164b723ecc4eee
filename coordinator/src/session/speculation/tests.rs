//! The controller on texts whose every token and cost is known.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::random::Random;

/// The least that speculation may leave of the speed without it.
const SPEED_MIN: f64 = 0.97;

const ZERO: Duration = Duration::ZERO;

/// What steps really cost.
#[derive(Debug, Clone, Copy)]
struct World {
    /// Seconds of a step without drafts.
    plain: f64,
    /// Seconds of arithmetic in it.
    compute: f64,
    /// Seconds of one more row.
    row: f64,
    /// How much steps vary.
    noise: f64,
}

/// A step over 200 ms of links, of which arithmetic is 20 ms.
const FAR: World = World { plain: 0.2, compute: 0.02, row: 0.004, noise: 0.0 };

/// Everything in one process, where a row costs a third of a step.
const NEAR: World = World { plain: 0.02, compute: 0.02, row: 0.007, noise: 0.0 };

/// What came of a text.
#[derive(Debug, Default)]
struct Run {
    seconds: f64,
    steps: u32,
    drafted: Vec<u32>,
}

impl Run {
    fn longest(&self) -> u32 {
        self.drafted.iter().copied().max().unwrap_or_default()
    }
}

/// Goes through `text` behind its first `known` tokens as a generation would that gives it.
fn run(world: World, text: &[u32], known: usize, control: &mut DraftControl) -> Run {
    let mut random = Random::new(7);
    let mut index = SuffixIndex::default();
    text[..known].iter().for_each(|&token| index.push(token));
    let (mut run, mut at) = (Run::default(), known);
    while at < text.len() {
        let tokens_max = u32::try_from(text.len() - at - 1).unwrap();
        let kind = DraftKind::Suffix { matched: index.matched() };
        let offers: Vec<_> = (index.matched() > 0)
            .then_some(Offer { kind, tokens_max, overhead: ZERO })
            .into_iter()
            .collect();
        let choice = control.choose(&offers);
        let draft = choice.map_or_else(Vec::new, |choice| index.draft(choice.tokens as usize));
        let accepted = draft.iter().zip(&text[at..]).take_while(|(a, b)| a == b).count();
        let noise = world.noise.mul_add(2.0 * random.unit() - 1.0, 1.0);
        let seconds = (draft.len() as f64).mul_add(world.row, world.plain) * noise;
        let drafted = choice.map(|choice| Drafted {
            kind: choice.kind,
            tokens: choice.tokens,
            accepted: u32::try_from(accepted).unwrap(),
            took: ZERO,
            overhead: ZERO,
        });
        control.settle(&Outcome { drafted, step: sample(world, seconds) });
        text[at..=at + accepted].iter().for_each(|&token| index.push(token));
        at += accepted + 1;
        run.seconds += seconds;
        run.steps += 1;
        run.drafted.push(u32::try_from(draft.len()).unwrap());
    }
    run
}

fn sample(world: World, seconds: f64) -> StepSample {
    let compute = Duration::from_secs_f64(world.compute.min(seconds));
    StepSample { total: Duration::from_secs_f64(seconds), compute, queue: ZERO }
}

/// How many times faster than without drafts.
fn speed(world: World, text: &[u32], known: usize) -> f64 {
    let run = run(world, text, known, &mut DraftControl::new());
    world.plain * (text.len() - known) as f64 / run.seconds
}

fn random_text(tokens: usize, vocabulary: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..tokens).map(|_| u32::try_from(random.below(vocabulary)).unwrap()).collect()
}

#[test]
fn a_text_that_repeats_its_prompt_gets_long_drafts() {
    let prompt = random_text(400, 5_000, 1);
    let text = [prompt.clone(), prompt].concat();
    assert!(speed(FAR, &text, 400) > 8.0);
    // At most 1 / 0.35 can be had where a row costs 0.35 of a step.
    assert!(speed(NEAR, &text, 400) > 1.8);
    let run = run(FAR, &text, 400, &mut DraftControl::new());
    assert!(run.longest() > 32, "{run:?}");
}

#[test]
fn a_text_that_copies_now_and_then_is_faster_too() {
    // Passages of 12 tokens out of the prompt, with 4 new ones between them.
    let mut text = random_text(600, 5_000, 2);
    let mut random = Random::new(3);
    for _ in 0..30 {
        let start = random.below(580);
        text.extend_from_within(start..start + 12);
        text.extend(random_text(4, 5_000, random.bits()));
    }
    assert!(speed(FAR, &text, 600) > 1.5);
}

#[test]
fn a_text_that_cannot_be_guessed_costs_almost_nothing_and_drafts_end() {
    for vocabulary in [3, 50, 30_000] {
        for world in [FAR, NEAR, World { row: 0.02, ..NEAR }, World { row: 0.04, ..NEAR }] {
            let text = random_text(900, vocabulary, 4);
            let ratio = speed(world, &text, 300);
            assert!(ratio >= SPEED_MIN, "{ratio} with {world:?} and {vocabulary} tokens");
        }
    }
    let dear = World { row: 0.02, ..NEAR };
    let run = run(dear, &random_text(2_000, 50, 5), 500, &mut DraftControl::new());
    let late = &run.drafted[run.drafted.len() / 2..];
    let drafting = late.iter().filter(|&&drafted| drafted > 0).count();
    assert!(drafting * 20 < late.len(), "{drafting} of {} steps still draft", late.len());
}

#[test]
fn times_that_vary_do_not_change_that() {
    for world in [FAR, NEAR, World { row: 0.02, ..NEAR }] {
        let world = World { noise: 0.3, ..world };
        let mut control = DraftControl::new();
        let run = run(world, &random_text(1_500, 50, 6), 300, &mut control);
        // In what the steps would have taken without noise.
        let seconds = run.drafted.iter().map(|&d| f64::from(d).mul_add(world.row, world.plain));
        let ratio = 1_200.0 * world.plain / seconds.sum::<f64>();
        assert!(ratio >= SPEED_MIN, "{ratio} with {world:?}");
    }
}

#[test]
fn drafts_come_back_when_the_text_begins_to_repeat_itself() {
    for world in [FAR, NEAR] {
        let dull = random_text(2_000, 300, 8);
        let text = [dull.clone(), dull[1_000..1_500].to_vec()].concat();
        let mut control = DraftControl::new();
        run(world, &dull, 500, &mut control);
        let again = run(world, &text, 2_000, &mut control);
        let ratio = world.plain * 500.0 / again.seconds;
        assert!(ratio > 1.7, "{ratio} with {world:?}");
    }
}

#[test]
fn before_anything_is_measured_and_without_offers_there_are_no_drafts() {
    let offer = Offer { kind: DraftKind::Suffix { matched: 40 }, tokens_max: 8, overhead: ZERO };
    let mut control = DraftControl::new();
    assert_eq!(control.choose(&[offer]), None);
    control.settle(&Outcome { drafted: None, step: sample(FAR, FAR.plain) });
    assert!(control.choose(&[offer]).is_some());
    assert_eq!(control.choose(&[]), None);
    assert_eq!(control.choose(&[Offer { tokens_max: 0, ..offer }]), None);
}

/// Steps with drafts of a model, of which `right` in ten are right.
fn with_model(world: World, took: f64, right: usize) -> (f64, DraftControl) {
    let (mut control, mut random) = (DraftControl::new(), Random::new(9));
    let (mut seconds, mut tokens) = (0.0, 0u32);
    while tokens < 600 {
        let choice =
            control.choose(&[Offer { kind: DraftKind::Model, tokens_max: 20, overhead: ZERO }]);
        let drafts = choice.map_or(0, |choice| choice.tokens);
        let accepted = (0..drafts).take_while(|_| random.below(10) < right).count();
        let accepted = u32::try_from(accepted).unwrap();
        let made = f64::from(drafts) * took;
        let step = f64::from(drafts).mul_add(world.row, world.plain);
        let drafted = (drafts > 0).then(|| Drafted {
            kind: DraftKind::Model,
            tokens: drafts,
            accepted,
            took: Duration::from_secs_f64(made),
            overhead: ZERO,
        });
        control.settle(&Outcome { drafted, step: sample(world, step) });
        seconds += made + step;
        tokens += accepted + 1;
    }
    (f64::from(tokens) * world.plain / seconds, control)
}

#[test]
fn a_model_drafts_where_it_is_cheap_and_right_and_nowhere_else() {
    assert!(with_model(FAR, 0.005, 8).0 > 2.5);
    assert!(with_model(FAR, 0.005, 0).0 >= SPEED_MIN);
    // A draft that takes as long as a step pays nothing.
    assert!(with_model(FAR, 0.2, 9).0 >= SPEED_MIN);
    assert!(with_model(NEAR, 0.015, 7).0 >= SPEED_MIN);
}

#[test]
fn servers_with_a_queue_get_shorter_drafts() {
    let offer = [Offer { kind: DraftKind::Model, tokens_max: 64, overhead: ZERO }];
    let (_, mut control) = with_model(FAR, 0.002, 8);
    let alone = control.choose(&offer).unwrap().tokens;
    for _ in 0..50 {
        let queue = Duration::from_secs_f64(4.0 * FAR.compute);
        let step = StepSample { queue, ..sample(FAR, FAR.plain) };
        control.settle(&Outcome { drafted: None, step });
    }
    let crowded = control.choose(&offer).unwrap().tokens;
    assert!(crowded < alone, "{crowded} and {alone}");
}

/// Tokens a second for a number of drafts, from every way in which the step can turn out.
fn rate_by_enumeration(chances: &[f64], row: f64, plain: f64) -> f64 {
    let mut tokens = 0.0;
    for accepted in 0..=chances.len() {
        let right: f64 = chances[..accepted].iter().product();
        let wrong = chances.get(accepted).map_or(1.0, |chance| 1.0 - chance);
        tokens += right * wrong * (accepted as f64 + 1.0);
    }
    tokens / (chances.len() as f64).mul_add(row, plain)
}

proptest! {
    #[test]
    fn the_number_of_drafts_is_the_best_of_all(
        matched in 1u32..40,
        row in 0.0005f64..0.15,
        // Drafts and how many of them were right, before.
        before in proptest::collection::vec((1u32..40, 1u32..12, 0u32..12), 0..60),
    ) {
        let world = World { row, ..FAR };
        let (mut control, mut acceptance) =
            (DraftControl::new(), acceptance::Acceptance::default());
        // Enough right ones that the account is full.
        let good = std::iter::repeat_n((60, 8, 8), 60);
        for (matched, tokens, accepted) in before.into_iter().chain(good) {
            let (kind, accepted) = (DraftKind::Suffix { matched }, accepted.min(tokens));
            acceptance.observe(kind, tokens, accepted);
            let drafted = Drafted { kind, tokens, accepted, took: ZERO, overhead: ZERO };
            let step = sample(world, f64::from(tokens).mul_add(row, world.plain));
            control.settle(&Outcome { drafted: Some(drafted), step });
            control.settle(&Outcome { drafted: None, step: sample(world, world.plain) });
        }
        let kind = DraftKind::Suffix { matched };
        let affordable = |count: &u32| f64::from(*count) * row < 7.9 * world.plain;
        let rates: Vec<f64> = (0..=20)
            .take_while(affordable)
            .map(|count| {
                let chances: Vec<_> = (0..count).map(|i| acceptance.chance(kind, i)).collect();
                rate_by_enumeration(&chances, row, world.plain)
            })
            .collect();
        let best = rates.iter().copied().fold(0.0, f64::max);
        let choice = control.choose(&[Offer { kind, tokens_max: 20, overhead: ZERO }]).unwrap();
        let chosen = rates[(choice.tokens as usize).min(rates.len() - 1)];
        // Less than the least gain makes no difference; then there is one draft, as a probe.
        prop_assert!(chosen >= best / 1.01 || (best * world.plain < 1.04 && choice.tokens == 1));
    }

    #[test]
    fn whatever_is_right_and_wrong_little_is_lost(
        right in proptest::collection::vec(0u32..100, 300),
        // How likely drafts are right in each third of the text, in percent.
        shares in [0u32..100, 0u32..100, 0u32..100],
        row in 0.001f64..0.3,
    ) {
        let world = World { row, ..FAR };
        let mut control = DraftControl::new();
        let (mut at, mut seconds) = (0, 0.0);
        while at < right.len() {
            let offer = Offer { kind: DraftKind::Suffix { matched: 25 }, tokens_max: 30, overhead: ZERO };
            let drafts = control.choose(&[offer]).map_or(0, |choice| choice.tokens);
            let hit = |&index: &usize| right.get(index).is_some_and(|r| *r < shares[index / 100]);
            let accepted = (at..at + drafts as usize).take_while(hit).count();
            let step = f64::from(drafts).mul_add(row, world.plain);
            let drafted = (drafts > 0).then(|| Drafted {
                kind: offer.kind,
                tokens: drafts,
                accepted: u32::try_from(accepted).unwrap(),
                took: ZERO,
            overhead: ZERO,
            });
            control.settle(&Outcome { drafted, step: sample(world, step) });
            at += accepted + 1;
            seconds += step;
        }
        prop_assert!(at as f64 * world.plain / seconds >= SPEED_MIN);
    }
}
