//! Swarms of real processes on links with delay and loss, which are cut while they answer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use umbel_client::{Speculate, Swarm, SwarmConfig};
use umbel_coordinator::random::Random;
use umbel_tests::faults::{Fault, Place, Replicated};
use umbel_tests::shape::{Shape, ShapedNetwork};
use umbel_tests::swarm::{Server, checkpoint, serve_behind};
use umbel_tests::workload::{Workload, ask, client_model, undisturbed};

/// One way.
const DELAY: Duration = Duration::from_millis(20);

/// Some continents' worth of delay, a loss that is bad but usual over radio, and 100 Mbit/s.
const FAR: Shape = Shape {
    delay: DELAY,
    jitter: Duration::from_millis(3),
    bytes_per_second: 12.5e6,
    loss: 0.005,
    buffer_bytes: 256 << 10,
};

fn workload(tokens: u32) -> Workload {
    Workload {
        prompt: vec![5, 17, 99, 140, 3, 201, 77],
        tokens,
        prefill_chunk: 512,
        standby: false,
    }
}

/// Over TCP what is lost comes late, and what is behind it too; a way that is cut holds everything.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_over_far_streams_goes_on_when_one_is_cut() {
    let network = ShapedNetwork::new(FAR, 2);
    let folder = checkpoint("llama");
    let mut servers: Vec<Server> = Vec::new();
    for span in ["0..2", "2..4", "2..4"] {
        let front = network.front().await.unwrap();
        let [_, tcp] = front.addresses();
        let mut arguments = vec![folder.as_str(), "--blocks", span];
        arguments.extend(servers.iter().flat_map(|server| ["--join", server.address()]));
        servers.push(serve_behind(front, &[&tcp], &arguments));
    }
    let address = |server: &Server| server.address().parse().unwrap();
    let join: Vec<_> = servers.iter().map(address).collect();
    let config = SwarmConfig { join, ..SwarmConfig::default() };
    let swarm = Arc::new(Swarm::join(config).await.unwrap());
    let (model, workload) = (client_model(&folder).unwrap(), workload(16));
    let mut generation = ask(swarm, &model, &workload, &Speculate::Off).await.unwrap();
    for _ in 0..5 {
        generation.next().await.unwrap().unwrap();
    }
    let (last, _) = generation.chain().route().pop().unwrap();
    let last = last.unwrap().to_string();
    let cut = servers.iter().find(|server| server.address().ends_with(&last)).unwrap();
    assert!(cut.address().contains("/tcp/"), "{}", cut.address());
    cut.front().unwrap().cut();
    generation.finish().await.unwrap();
    assert_eq!(generation.tokens(), undisturbed(&model, &workload).await.unwrap());
    let (other, _) = generation.chain().route().pop().unwrap();
    assert_ne!(other.unwrap().to_string(), last);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_over_three_far_hops_is_that_of_one_process() {
    let network = ShapedNetwork::new(FAR, 1);
    let spans = ["0..1", "1..2", "2..4"];
    let mut swarm = Replicated::start_on(network, &checkpoint("llama"), &spans).await.unwrap();
    let workload = workload(12);
    let expected = swarm.undisturbed(&workload).await.unwrap();

    let mut generation = swarm.begin(&workload).await.unwrap();
    assert_eq!(generation.chain().route().len(), 3);
    while let Some(token) = generation.next().await.unwrap() {
        // To the first hop, along the others, and back.
        assert!(token.time.total >= 4 * DELAY, "{:?}", token.time);
    }
    assert_eq!(generation.tokens(), expected);
    generation.into_chain().0.close().await;

    let faults = [
        Fault::CutOff(Place::Middle),
        Fault::Kill(Place::First),
        Fault::Kill(Place::Middle),
        Fault::Kill(Place::Last),
    ];
    for (seed, fault) in (1..).zip(faults) {
        let outcome = swarm.run(&workload, fault, &mut Random::new(seed)).await;
        let outcome = outcome.unwrap_or_else(|error| panic!("{fault}: {error:#}"));
        assert_eq!(outcome.tokens, expected, "{fault}");
        assert!(outcome.failures >= 1, "{fault}: nothing failed");
        println!("{fault}: {:?}, usually {:?}", outcome.gap, outcome.usual);
        swarm.restore().await.unwrap();
    }
}
