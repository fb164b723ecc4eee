//! Servers that refuse what others do.

use std::sync::Arc;
use std::time::Duration;

use umbel_client::train::TrainError;
use umbel_client::{Swarm, SwarmConfig};
use umbel_protocol::ErrorCode;
use umbel_protocol::training::{TrainerMessage, TrainingAnswer};
use umbel_tests::training::{Lesson, join, start};

use super::fakes::fake;

/// Takes up the adapter, and refuses every microbatch.
fn refuse(message: TrainerMessage) -> TrainingAnswer {
    if matches!(message, TrainerMessage::Write(_)) {
        return TrainingAnswer::Written;
    }
    TrainingAnswer::Error { code: ErrorCode::WrongShape, detail: "not with me".to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_what_others_do_is_replaced() {
    let lesson = Lesson::new();
    let expected = lesson.steps(&mut lesson.local()).await.unwrap();
    let first = start("0..2", None);
    let refuser = fake(&first, &lesson, refuse).await;
    let (mut trainer, _) = lesson.remote(&join(&first).await.unwrap()).await.unwrap();
    assert_eq!(trainer.routes()[0][1].peer, Some(refuser.peer_id()));
    let second = start("2..4", Some(&first));
    assert_eq!(lesson.steps(&mut trainer).await.unwrap(), expected);
    assert_eq!(trainer.replaced(), 1);
    trainer.close().await;
    refuser.shutdown().await;
    [first, second].iter().for_each(|server| server.assert_no_errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_believed_when_another_server_says_the_same_or_there_is_no_other() {
    let lesson = Lesson::new();
    let first = start("0..2", None);
    let alone = fake(&first, &lesson, refuse).await;
    let config = SwarmConfig {
        join: vec![first.address().parse().unwrap()],
        patience: Duration::from_secs(1),
        ..SwarmConfig::default()
    };
    let hasty = Arc::new(Swarm::join(config).await.unwrap());
    let (mut trainer, _) = lesson.remote(&hasty).await.unwrap();
    let nobody = trainer.step(&lesson.batch(), 0.01).await.unwrap_err();
    assert!(matches!(nobody, TrainError::NoRoute { .. }), "{nobody}");
    assert!(nobody.to_string().contains("not with me"), "{nobody}");

    // With more patience it is asked again, as there is nobody else.
    let patient = join(&first).await.unwrap();
    let (mut trainer, _) = lesson.remote(&patient).await.unwrap();
    let refused = trainer.step(&lesson.batch(), 0.01).await.unwrap_err();
    let is_believed = matches!(&refused, TrainError::Refused { code: ErrorCode::WrongShape, .. });
    assert!(is_believed, "{refused}");

    let other = fake(&first, &lesson, refuse).await;
    let (mut trainer, _) = lesson.remote(&join(&first).await.unwrap()).await.unwrap();
    let refused = trainer.step(&lesson.batch(), 0.01).await.unwrap_err();
    let is_believed = matches!(&refused, TrainError::Refused { code: ErrorCode::WrongShape, .. });
    assert!(is_believed, "{refused}");
    for fake in [alone, other] {
        fake.shutdown().await;
    }
    first.assert_no_errors();
}
