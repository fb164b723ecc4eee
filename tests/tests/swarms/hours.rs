//! A server that has hours, in a process whose rest begins and ends while a session is open on it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use umbel_client::{Chain, ClientModel, Generation, Swarm};
use umbel_tests::swarm::{Server, checkpoint, serve, serve_in};
use umbel_tests::training::join;
use umbel_tests::workload::{Workload, ask, client_model, undisturbed};

/// The rest begins so long after the server was started; where the machine is too laden for the first, the
/// next is tried.
const LEADS: [Duration; 3] =
    [Duration::from_secs(8), Duration::from_secs(30), Duration::from_secs(120)];

/// How long the rest is.
const REST: Duration = Duration::from_secs(6);

/// How long it may take until all that the rest begins or ends has come about.
const SLACK: Duration = Duration::from_secs(30);

/// How often it is looked; a token is generated each time.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The hours of a day that are over at one time and begin again at another, both whole seconds since the
/// epoch.
fn hours(end: Duration, begin: Duration) -> String {
    let text = |time: Duration| {
        let seconds = time.as_secs() % 86_400;
        format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
    };
    format!("{}-{}", text(begin), text(end))
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// Whether a session is on a server.
fn is_on(generation: &Generation, server: &Server) -> bool {
    let route = generation.chain().route();
    let on = |peer: String| server.address().ends_with(&peer);
    route.iter().all(|(peer, _)| peer.is_some_and(|peer| on(peer.to_string())))
}

/// Generates until the session is on a server, and says whether it is in time.
async fn generate_until_on(generation: &mut Generation, server: &Server, by: Duration) -> bool {
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    while !is_on(generation, server) {
        if since_epoch() > by || generation.next().await.unwrap().is_none() {
            return false;
        }
        looks.tick().await;
    }
    true
}

/// Waits until a server says that it rests, or that it does not, and says whether it does so in time.
async fn says(swarm: &Swarm, server: &Server, rests: bool, by: Duration) -> bool {
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        let known = swarm.announcements(None).await;
        let mut of = known.iter().filter(|one| server.address().ends_with(&one.peer.to_string()));
        if of.any(|one| one.draining == rests) {
            return true;
        }
        if since_epoch() > by {
            return false;
        }
        looks.tick().await;
    }
}

/// Opens a session on a server with hours, and generates over its rest; `None` where the machine was too
/// slow for that.
async fn over_a_rest(
    model: &Arc<ClientModel>,
    workload: &Workload,
    lead: Duration,
) -> Option<Vec<u32>> {
    let folder = checkpoint("llama");
    let rests = Duration::from_secs((since_epoch() + lead).as_secs());
    let wakes = rests + REST;
    let arguments = [&folder, "--blocks", "0..4", "--hours", &hours(rests, wakes)];
    let server = serve_in(&[("TZ", "UTC")], &arguments);
    let swarm = join(&server).await.unwrap();
    if since_epoch() + REST / 2 > rests {
        return None;
    }
    let answering = ask(Arc::clone(&swarm), model, workload, &umbel_client::Speculate::Off).await;
    let mut generation = answering.unwrap();
    generation.next().await.unwrap().unwrap();
    assert!(is_on(&generation, &server), "there is no other");
    let other = serve(&[&folder, "--blocks", "0..4", "--join", server.address()]);
    if !generate_until_on(&mut generation, &other, rests + SLACK).await {
        return None;
    }
    let rested = says(&swarm, &server, true, wakes).await;
    if !rested || !says(&swarm, &server, false, wakes + SLACK).await {
        return None;
    }
    assert!(since_epoch() >= wakes, "it does not come back before its hours begin");
    // It is of use again: the session comes back to it when the other one leaves.
    let leaving = tokio::task::spawn_blocking(move || other.terminate());
    let is_back = generate_until_on(&mut generation, &server, wakes + 2 * SLACK).await;
    generation.finish().await.unwrap();
    let Chain::Remote(chain) = generation.chain() else { panic!("it is remote") };
    assert!(chain.failures().is_empty(), "a server that rests fails nobody");
    assert!(leaving.await.unwrap().status.success());
    server.assert_no_errors();
    is_back.then(|| generation.tokens().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_elsewhere_when_the_hours_are_over_and_nothing_is_lost() {
    let model = client_model(&checkpoint("llama")).unwrap();
    let prompt = vec![5, 17, 99, 140, 3];
    let workload = Workload { prompt, tokens: 200, prefill_chunk: 64, standby: false };
    let expected = undisturbed(&model, &workload).await.unwrap();
    for lead in LEADS {
        if let Some(tokens) = over_a_rest(&model, &workload, lead).await {
            assert_eq!(tokens, expected);
            return;
        }
    }
    panic!("the machine was never quick enough, or the server never rested or never came back");
}
