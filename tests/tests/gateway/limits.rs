//! What a gateway does where room, turns or budgets are short.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use umbel_tests::gateway::{Answer, Gateway};
use umbel_tests::swarm::checkpoint;

const MODEL: &str = "smollm2-135m";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// How long an answer may take on a machine that runs many tests at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

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

/// Asks for an answer to a text, by each interface, whose field for it is given too.
fn asked_by_each(text: &str) -> [(&'static str, &'static str, Value); 5] {
    let turns = json!([{ "role": "user", "content": text }]);
    [
        (CHAT, "messages", json!({ "model": MODEL, "messages": turns })),
        (MESSAGES, "messages", json!({ "model": MODEL, "messages": turns, "max_tokens": 1 })),
        (COMPLETIONS, "prompt", json!({ "model": MODEL, "prompt": text })),
        (EMBEDDINGS, "input", json!({ "model": MODEL, "input": text })),
        (RESPONSES, "input", json!({ "model": MODEL, "input": text })),
    ]
}

#[test]
fn a_text_that_is_too_long_is_refused_by_the_name_of_its_field() {
    let gateway = Gateway::start(&["--local"]);
    // The one has more tokens than there is room for; the other has so many bytes that it must have.
    for (text, words) in [("word ".repeat(9_000), "tokens"), ("word ".repeat(600_000), "bytes")] {
        for (path, param, body) in asked_by_each(&text) {
            let answer = gateway.post(path, body.to_string().as_bytes());
            assert_eq!(answer.status, 400, "{path} {}", answer.json);
            assert!(message(&answer).contains(words), "{path} {}", answer.json);
            if path != MESSAGES {
                let error = &answer.json["error"];
                let expected = (json!("context_length_exceeded"), json!(param));
                assert_eq!((&error["code"], &error["param"]), (&expected.0, &expected.1), "{path}");
            }
        }
    }
    let ids = json!({ "model": MODEL, "prompt": vec![7; 9_000] }).to_string();
    let answer = gateway.post(COMPLETIONS, ids.as_bytes());
    assert_eq!(answer.json["error"]["param"], "prompt", "{}", answer.json);
}

#[test]
fn who_comes_while_others_texts_are_read_and_nobody_may_wait_is_told_to_come_back() {
    let gateway = Gateway::start(&["--local", "--waiting", "0"]);
    let [(path, _, body), ..] = asked_by_each(&"word ".repeat(120_000));
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close");
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let address = gateway.url("").trim_start_matches("http://").to_owned();
    let ask = |_| {
        let mut stream = TcpStream::connect(&address).expect("the gateway listens");
        stream.write_all(request.as_bytes()).expect("the gateway reads");
        stream
    };
    let answer = |mut stream: TcpStream| {
        let mut answer = String::new();
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout");
        stream.read_to_string(&mut answer).expect("the gateway answers and closes");
        answer
    };
    // Texts are read by as many at once as there are processors, and these take a moment each.
    let at_once = 8 * thread::available_parallelism().expect("it is known here").get();
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        let asked: Vec<_> = (0..at_once).map(ask).collect();
        let answers: Vec<_> = asked.into_iter().map(answer).collect();
        let (busy, read): (Vec<_>, Vec<_>) =
            answers.iter().partition(|answer| answer.starts_with("HTTP/1.1 429"));
        assert!(read.iter().all(|answer| answer.starts_with("HTTP/1.1 400")), "{read:?}");
        if let Some(busy) = busy.first() {
            assert!(busy.contains("wait already"), "{busy}");
            return;
        }
        assert!(Instant::now() < deadline, "all of their texts are read at once");
    }
}
