//! What a gateway does where room, turns or budgets are short.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use umbel_tests::gateway::{Answer, Gateway};
use umbel_tests::swarm::checkpoint;

const MODEL: &str = "smollm2-135m";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";

/// A request that is answered for longer than a test takes, and leaves little of the context's 8,192.
fn long() -> Value {
    json!({ "model": MODEL, "prompt": "Once", "max_tokens": 8_000, "stream": true })
}

fn message(answer: &Answer) -> &str {
    answer.json["error"]["message"].as_str().unwrap()
}

#[test]
fn one_process_gives_several_answers_whose_room_it_has_for_one() {
    let gateway = Gateway::start(&[&checkpoint("llama"), "--local"]);
    let name = gateway.get("/v1/models").json["data"][0]["id"].clone();
    let body = json!({ "model": name, "prompt": [5, 17, 99], "n": 8, "seed": 1 });
    let answer = gateway.ask(COMPLETIONS, &body);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 8);
    assert!(choices.iter().all(|choice| choice["finish_reason"].is_string()), "{answer}");

    // Each text takes more than half of the room.
    let texts = json!({ "model": name, "input": vec![vec![7; 140]; 8] });
    assert_eq!(gateway.ask(EMBEDDINGS, &texts)["data"].as_array().unwrap().len(), 8);
}

#[test]
fn who_finds_no_room_where_nobody_may_wait_is_told_to_come_back() {
    let gateway = Gateway::start(&["--local", "--waiting", "0"]);
    let mut events = gateway.stream(COMPLETIONS, &long());
    events.next().unwrap();
    let body = json!({ "model": MODEL, "prompt": "Hi", "max_tokens": 1_000 });
    let full = gateway.post(COMPLETIONS, body.to_string().as_bytes());
    assert_eq!((full.status, full.retry_after.as_deref()), (429, Some("2")), "{}", full.json);
    assert!(message(&full).contains("all room is taken"), "{}", full.json);
    let small = json!({ "model": MODEL, "prompt": "Hi", "max_tokens": 2 });
    assert_eq!(gateway.ask(COMPLETIONS, &small)["usage"]["completion_tokens"], 2);
}
