//! Sessions that find no room, and those that wait for it.

use std::path::Path;

use futures::poll;
use umbel_shard::{Cache, ModelSource, PartsNeeded, Silent};

use super::*;

/// A tiny model, with room for so many tokens of all sessions.
fn model(kv_tokens: usize) -> Arc<LocalModel> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints");
    let source = ModelSource::parse(fixtures.join("llama").to_str().unwrap()).unwrap();
    let cache = Cache::new(tempfile::tempdir().unwrap().path());
    let model = Model::open(&source, &cache, PartsNeeded::everything(), &Silent).unwrap();
    Arc::new(LocalModel::load(&model, kv_tokens, Device::shared()).unwrap())
}

#[tokio::test]
async fn who_waits_has_the_room_that_others_leave_before_those_who_do_not_wait() {
    let model = model(64);
    let first = model.open(48).unwrap();
    assert!(matches!(model.open(32), Err(OpenTableError::Full { .. })));
    let mut large = Box::pin(model.open_in_turn(DType::F32, 64));
    let mut small = Box::pin(model.open_in_turn(DType::F32, 16));
    assert!(poll!(&mut large).is_pending() && poll!(&mut small).is_pending());
    assert!(model.open(16).is_err(), "what is free is kept for the large one");
    drop(first);
    let large = large.await.unwrap();
    assert!(poll!(&mut small).is_pending());
    drop(large);
    drop(small.await.unwrap());
    assert!(model.open(64).is_ok(), "nobody waits any more");
}

#[tokio::test]
async fn who_leaves_the_queue_holds_up_nobody() {
    let model = model(64);
    let first = model.open(64).unwrap();
    let mut gone = Box::pin(model.open_in_turn(DType::F32, 64));
    assert!(poll!(&mut gone).is_pending());
    drop((gone, first));
    assert!(model.open(64).is_ok());
}

#[tokio::test]
async fn nobody_waits_for_room_that_can_never_be() {
    let model = model(64);
    let refused = model.open_in_turn(DType::F32, 65).await;
    assert!(matches!(refused, Err(OpenTableError::Full { .. })));
}
