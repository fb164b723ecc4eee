//! Servers that stop for a while: `umbel pause` and `umbel resume`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

use std::time::{Duration, Instant};

use serde_json::Value;
use umbel_tests::process::Output;
use umbel_tests::swarm::{Server, checkpoint, report, serve, umbel};
use umbel_tests::training::{Lesson, join, start};

/// How long the swarm may take to hear of it, on a machine that runs many tests at once.
const HEARD_TIMEOUT: Duration = Duration::from_secs(30);

fn tell(what: &str, server: &Server) -> Output {
    umbel(&[what, "--identity", server.identity_file().to_str().unwrap()])
}

fn ask(server: &Server, patience: &str) -> Output {
    let model = checkpoint("llama");
    umbel(&[
        "generate",
        "--model",
        &model,
        "--json",
        "--prompt-ids",
        "1,2,3",
        "--max-tokens",
        "5",
        "--ignore-eos",
        "--patience",
        patience,
        "--join",
        server.address(),
    ])
}

/// Waits until the swarm says of a server that it takes no session, or that it does.
fn wait_until(asked: &Server, server: &Server, pauses: bool) {
    let deadline = Instant::now() + HEARD_TIMEOUT;
    loop {
        let status = report(&umbel(&["status", "--json", "--join", asked.address()]));
        let servers = status["servers"].as_array().unwrap();
        let known = |one: &&Value| server.address().ends_with(one["peer"].as_str().unwrap());
        if servers.iter().find(known).is_some_and(|one| one["draining"] == pauses) {
            return;
        }
        assert!(Instant::now() < deadline, "{status:#}");
    }
}

#[test]
fn a_server_that_pauses_takes_no_session_until_it_goes_on() {
    let model = checkpoint("llama");
    let first = serve(&[&model, "--blocks", "0..4"]);
    let second = serve(&[&model, "--join", first.address(), "--no-rebalance"]);
    let before = report(&ask(&first, "20"));

    let told = tell("pause", &first);
    assert!(told.stdout.contains("pauses: the server of"), "{told:?}");
    assert!(tell("pause", &first).stdout.contains("paused already"));
    wait_until(&first, &first, true);
    assert_eq!(
        report(&ask(&first, "20"))["token_ids"],
        before["token_ids"],
        "the other one answers"
    );

    assert!(tell("pause", &second).status.success());
    wait_until(&second, &second, true);
    let refused = ask(&second, "1");
    assert!(!refused.status.success(), "nobody serves: {refused:?}");

    assert!(tell("resume", &first).stdout.contains("goes on"));
    wait_until(&first, &first, false);
    assert_eq!(report(&ask(&first, "20"))["token_ids"], before["token_ids"], "on the same blocks");

    // One that pauses can be stopped like any other, and then there is nobody to be told.
    let file = second.identity_file();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("identity.pem");
    std::fs::copy(&file, &copy).unwrap();
    second.assert_no_errors();
    assert!(second.terminate().status.success());
    let nobody = umbel(&["pause", "--identity", copy.to_str().unwrap()]);
    assert!(!nobody.status.success() && nobody.stderr.contains("no server"), "{nobody:?}");
    first.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_on_takes_trainings_again() {
    let lesson = Lesson::new();
    let expected = lesson.steps(&mut lesson.local()).await.unwrap();
    let server = start("0..4", None);
    assert!(tell("pause", &server).status.success());
    wait_until(&server, &server, true);
    assert!(tell("resume", &server).status.success());
    wait_until(&server, &server, false);
    let swarm = join(&server).await.unwrap();
    let (mut trainer, _) = lesson.remote(&swarm).await.unwrap();
    assert_eq!(lesson.steps(&mut trainer).await.unwrap(), expected);
    trainer.close().await;
    server.assert_no_errors();
}
