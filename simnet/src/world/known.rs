//! Faults of the machines that this world has found. Each is mended; its test stays.

use std::time::Duration;

use umbel_protocol::{PeerId, Span};

use super::tests::at;
use super::*;
use crate::oracle::{HIDDEN_SIZE, VOCABULARY};
use crate::table::failures;
use crate::workload::tokens;

/// A ping goes behind a prompt that is still leaving: a hop was given up for silence while it had
/// not even been asked, and every other hop in turn.
#[test]
fn a_long_prompt_over_a_slow_link_reaches_its_hop() {
    let link = LinkClass::new(Duration::from_millis(5), Duration::ZERO, 12.5e6);
    let model = ModelId::from_bytes([9; 32]);
    let settings = Settings { token_bytes: 28_672, ..Settings::new(model, 1, link) };
    let mut world = World::new(Seed(0), settings);
    for name in [1, 2] {
        let config = ServerConfig {
            peer: PeerId::from_public_key([name; 32]),
            model,
            span: Span::new(0, 1).unwrap(),
            block_count: 1,
            vocabulary_size: Some(VOCABULARY),
            hidden_size: HIDDEN_SIZE,
            head_size: 32,
            context_tokens: 1_024,
            kv_tokens_max: 4_096,
            cache: None,
            journal_bytes_max: 1 << 20,
            keeps_pages: true,
            adapters: None,
        };
        world.serve(config, Speed::new(Duration::from_millis(1), Duration::ZERO), 0);
    }
    let prompt = tokens(512, &mut Seed(0).stream("prompt"));
    let plan = Plan { tokens_max: 512, steps: [(0, prompt)].into(), ..Plan::default() };
    world.join(at(0), plan, 0);
    world.run();
    let failures: Vec<_> = world.clients[0].failures.iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{failures:?}");
}

/// The first hop's link closes, its spare takes the place, and the next step begins before the
/// spare has agreed on its neighbours: the step was not mirrored, since the spare was none any more,
/// and then not sent, since a mirror has had everything.
#[test]
fn a_step_that_begins_while_a_spare_takes_over_is_sent() {
    let world = failures::generate(120, 2e-2, true, true, Seed(94));
    let longest = world.clients[0].answers.iter().map(|answer| answer.took).max().unwrap();
    assert!(longest < Duration::from_secs(60), "a step waited for {longest:?}");
}
