//! What a trainer is asked for between two steps.

use std::path::Path;

use umbel_engine::Device;
use umbel_engine::train::{AdamW, Adapter, AdapterConfig, TargetModule, TrainingState};
use umbel_protocol::Span;
use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};

use super::*;
use crate::ClientModel;
use crate::train::{Blocks, LocalBlocks, TrainerSettings};

/// A trainer of the small random model, in this process.
fn trainer() -> Trainer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama");
    let source = ModelSource::parse(folder.to_str().unwrap()).unwrap();
    let cache = Cache::new(tempfile::tempdir().unwrap().path());
    let model = Model::open(&source, &cache, PartsNeeded::everything(), &Silent).unwrap();
    let model = Arc::new(ClientModel::from_shard(model).unwrap());
    let config = AdapterConfig {
        rank: 2,
        alpha: 4.0,
        target_modules: vec![TargetModule::Value],
        ..AdapterConfig::default()
    };
    let blocks = Span::new(0, 4).unwrap();
    let adapter = Adapter::begin(config, model.config(), blocks, 0).unwrap();
    let state = TrainingState::new(adapter, AdamW::default());
    let blocks = LocalBlocks::load(model.shard(), Device::shared()).unwrap();
    Trainer::new(model, Blocks::Local(blocks), state, TrainerSettings::default())
}

#[tokio::test]
async fn what_is_told_of_a_round_was_learned_from_its_own_state() {
    let mut trainer = trainer();
    let shifted = |by: f32| -> Vec<f32> { trainer.values().iter().map(|v| v + by).collect() };
    let (begun_with, learned) = (shifted(1.0), shifted(2.0));
    let (tell, mut told) = mpsc::channel(TOLD_WAITING_MAX);
    let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
    let network = Network::start(config).await.unwrap();
    let asked = Arc::new(Asked::default());
    let together = Together { network, tell, asked, task: JoinSet::new() };
    // A validation was so long that the round has begun and was to be told of meanwhile.
    let state = Arc::new(RunState::begin(begun_with.clone()).unwrap());
    let round = state.round();
    together.asked.change(|wanted| {
        (wanted.begin, wanted.learned) = (Some((state, 2)), Some(round));
    });
    let begun = together.between_steps(&mut trainer).await.unwrap();
    assert_eq!(begun.map(|begun| begun.members), Some(2));
    assert_eq!(trainer.values(), begun_with);
    assert!(told.try_recv().is_err(), "nothing was learned from it yet");
    trainer.adopt(&learned).await.unwrap();
    assert_eq!(together.between_steps(&mut trainer).await.unwrap(), None);
    let Ok(Input::Learned { round: of, values }) = told.try_recv() else {
        panic!("it was to be told")
    };
    assert_eq!((of, values), (round, learned));
    together.leave().await;
}
