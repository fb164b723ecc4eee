//! What is computed together has the bits of what is computed alone.

use std::path::Path;

use tokio::task::JoinSet;
use umbel_shard::{Cache, Model, ModelSource, Part, PartsNeeded, Silent};

use super::*;

fn ends() -> Ends {
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama");
    let source = ModelSource::parse(llama.to_str().unwrap()).unwrap();
    let cache = Cache::new(tempfile::tempdir().unwrap().path());
    let shard = Model::open(&source, &cache, PartsNeeded::ends(), &Silent).unwrap();
    let weights = shard.weights(Part::Embedding).unwrap();
    let weights = weights.and(shard.weights(Part::Head).unwrap());
    Ends::load(shard.config(), &weights).unwrap()
}

/// Hidden states of so many tokens that are unlike those of any other `number`.
fn hidden(number: usize, tokens: usize, hidden_size: usize) -> HiddenStates {
    let value = |index: usize| ((index * 31 + number * 7_919) % 1_009) as f32 / 500.0 - 1.0;
    HiddenStates::from_values((0..tokens * hidden_size).map(value).collect(), hidden_size).unwrap()
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|value| value.to_bits()).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_ask_at_once_get_what_each_would_get_alone() {
    let ends = ends();
    let head = Arc::new(Head::new(ends.clone()));
    let mut asking = JoinSet::new();
    for number in 0..200 {
        // Some are longer than what is computed together.
        let hidden = hidden(number, [1, 1, 3, 70][number % 4], ends.hidden_size());
        let (head, ends) = (Arc::clone(&head), ends.clone());
        asking.spawn(async move {
            let logits = head.logits(hidden.clone()).await.unwrap();
            assert_eq!(bits(&logits), bits(&ends.logits_of_all(&hidden).unwrap()));
        });
    }
    while let Some(result) = asking.join_next().await {
        result.unwrap();
    }
    // The thread that gave the last answer looks once more whether anybody waits.
    let ended = async {
        while head.queue().is_busy {
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
    assert!(ended.is_ok(), "nobody computes when all have been answered");
}

#[tokio::test]
async fn an_error_is_of_who_has_made_it() {
    let ends = ends();
    let head = Arc::new(Head::new(ends.clone()));
    let good = hidden(1, 2, ends.hidden_size());
    let bad = hidden(2, 1, ends.hidden_size() + 1);
    let (first, wrong, last) =
        tokio::join!(head.logits(good.clone()), head.logits(bad), head.logits(good.clone()));
    assert!(matches!(wrong, Err(EndsError::WrongHiddenSize { .. })), "{wrong:?}");
    let expected = bits(&ends.logits_of_all(&good).unwrap());
    assert_eq!(bits(&first.unwrap()), expected);
    assert_eq!(bits(&last.unwrap()), expected);
}
