//! What a gateway does where room, turns or budgets are short.

use std::path::Path;

use serde_json::{Value, json};
use umbel_tests::gateway::{Answer, Gateway};
use umbel_tests::swarm::checkpoint;

const MODEL: &str = "smollm2-135m";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";

/// A request that is answered for longer than a test takes, and leaves little of the context's 8,192.
fn long() -> Value {
    json!({ "model": MODEL, "prompt": "Once", "max_tokens": 8_000, "stream": true })
}

fn message(answer: &Answer) -> &str {
    answer.json["error"]["message"].as_str().expect("an error says what is wrong")
}

#[test]
fn one_process_gives_several_answers_whose_room_it_has_for_one() {
    let gateway = Gateway::start(&[&checkpoint("llama"), "--local"]);
    let name = gateway.get("/v1/models").json["data"][0]["id"].clone();
    // Each of them, answers and texts, takes more than half of the room.
    let body = json!({ "model": name, "prompt": [5, 17, 99], "n": 8, "max_tokens": 200 });
    let answer = gateway.ask(COMPLETIONS, &body);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 8);
    assert!(choices.iter().all(|choice| choice["finish_reason"].is_string()), "{answer}");

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

/// A gateway that gives one answer at once, for `ann` with 100 tokens a minute and for `eve`.
fn with_keys(folder: &Path) -> Gateway {
    let file = folder.join("keys.toml");
    let keys = "
        [[key]]
        name = 'ann'
        key = 'ann-has-a-long-key'
        tokens_per_minute = 100

        [[key]]
        name = 'eve'
        key = 'eve-has-a-long-key'
    ";
    std::fs::write(&file, keys).expect("the folder is the test's own");
    let file = file.to_str().expect("its name is text");
    Gateway::start(&["--local", "--keys", file, "--answers", "1", "--waiting", "0"])
}

const ANN: (&str, &str) = ("authorization", "Bearer ann-has-a-long-key");
const EVE: (&str, &str) = ("authorization", "Bearer eve-has-a-long-key");

#[test]
fn texts_that_were_read_are_spent_also_where_another_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = with_keys(folder.path());
    let ask = |input: Value| {
        let body = json!({ "model": MODEL, "input": input }).to_string();
        gateway.post_with(EMBEDDINGS, ANN, body.as_bytes())
    };
    let failed = ask(json!([vec![7; 200], vec![u32::MAX]]));
    assert_eq!(failed.status, 400, "{}", failed.json);
    let spent = ask(json!("Hi"));
    assert_eq!(spent.status, 429, "{}", spent.json);
    assert!(message(&spent).contains("used up the tokens"), "{}", spent.json);
}

#[test]
fn who_is_told_to_come_back_has_spent_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = with_keys(folder.path());
    let mut events = gateway.stream_with(COMPLETIONS, EVE, &long());
    events.next().unwrap();
    let turns = json!([{ "role": "user", "content": "word ".repeat(60) }]);
    let body = json!({ "model": MODEL, "messages": turns, "max_tokens": 1 }).to_string();
    for _ in 0..3 {
        let busy = gateway.post_with(CHAT, ANN, body.as_bytes());
        assert_eq!(busy.status, 429, "{}", busy.json);
        assert!(message(&busy).contains("wait already"), "{}", busy.json);
    }
}
