//! Whatever comes over HTTP, the fault is not the gateway's: it says so with a 4xx, and goes on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use umbel_tests::gateway::Gateway;

const MODEL: &str = "smollm2-135m";

/// Connections that say nothing to their end, while others are answered.
const STALLED: usize = 200;

/// Fields that bound an answer, and with it the time of a test.
const LIMITS: [&str; 3] = ["max_tokens", "max_completion_tokens", "max_output_tokens"];

/// Good requests with much in them, of every interface.
fn good() -> Vec<(&'static str, Value)> {
    let schema = json!({
        "type": "object", "properties": { "a": { "type": "integer", "maximum": 9 } },
        "required": ["a"], "additionalProperties": false,
    });
    let function = json!({ "name": "f", "description": "d", "parameters": schema });
    let chat = json!({
        "model": MODEL, "max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "n": 2,
        "seed": 3, "stop": ["x", "y"], "logprobs": true, "top_logprobs": 2, "stream": true,
        "stream_options": { "include_usage": true }, "logit_bias": { "5": 1.5 }, "trace": true,
        "presence_penalty": 0.1, "prediction": { "type": "content", "content": "Hello" },
        "chat_template_kwargs": { "enable_thinking": false },
        "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "Hi" }] },
            { "role": "assistant", "content": null, "tool_calls": [{ "type": "function", "id": "1",
                "function": { "name": "f", "arguments": "{\"a\": 1}" } }] },
            { "role": "tool", "tool_call_id": "1", "content": "2" },
        ],
        "tools": [{ "type": "function", "function": function }], "tool_choice": "auto",
    });
    let form = json!({
        "model": MODEL, "max_tokens": 1, "messages": [{ "role": "user", "content": "Hi" }],
        "response_format": { "type": "json_schema",
            "json_schema": { "name": "s", "schema": schema, "strict": true } },
    });
    let completion = json!({
        "model": MODEL, "prompt": [[1, 2], [3]], "max_tokens": 1, "echo": true,
        "suffix": null, "best_of": 1,
    });
    let messages = json!({
        "model": MODEL, "max_tokens": 1, "system": [{ "type": "text", "text": "Be brief." }],
        "stop_sequences": ["x"], "thinking": { "type": "disabled" },
        "messages": [
            { "role": "user", "content": "Hi" },
            { "role": "assistant", "content": [
                { "type": "tool_use", "id": "1", "name": "f", "input": { "a": 1 } }] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "1", "content": "2", "is_error": false }] },
        ],
        "tools": [{ "name": "f", "input_schema": schema }], "tool_choice": { "type": "auto" },
    });
    let responses = json!({
        "model": MODEL, "max_output_tokens": 1, "instructions": "Be brief.", "stream": true,
        "input": [{ "type": "message", "role": "user",
            "content": [{ "type": "input_text", "text": "Hi" }] }],
        "text": { "format": { "type": "json_object" } }, "tools": [], "store": false,
    });
    let embeddings = json!({ "model": MODEL, "input": ["a", "b"], "encoding_format": "float" });
    vec![
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", form),
        ("/v1/completions", completion),
        ("/v1/messages", messages),
        ("/v1/responses", responses),
        ("/v1/embeddings", embeddings),
    ]
}

/// Any JSON that is not large.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..40).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z]{0,8}".prop_map(Value::from),
        ".{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Something that is done to a body.
#[derive(Debug, Clone)]
enum Change {
    /// A part of it becomes something else.
    Replace(Value),
    /// A part of it is gone.
    Remove,
    /// A list has an element more, an object a field.
    Add(String, Value),
}

fn change() -> impl Strategy<Value = (Index, Change)> {
    let change = prop_oneof![
        4 => any_json().prop_map(Change::Replace),
        1 => Just(Change::Remove),
        1 => ("[a-z_]{1,8}", any_json()).prop_map(|(name, value)| Change::Add(name, value)),
    ];
    (any::<Index>(), change)
}

/// Where everything in a body is, as JSON pointers.
fn places(value: &Value, at: &str, places: &mut Vec<String>) {
    places.push(at.to_owned());
    let list = value.as_array().into_iter().flatten().enumerate();
    list.for_each(|(index, inner)| self::places(inner, &format!("{at}/{index}"), places));
    for (name, inner) in value.as_object().into_iter().flatten() {
        let name = name.replace('~', "~0").replace('/', "~1");
        self::places(inner, &format!("{at}/{name}"), places);
    }
}

fn apply(body: &mut Value, place: &Index, change: Change) {
    let mut all = Vec::new();
    places(body, "", &mut all);
    let place = place.get(&all);
    match change {
        Change::Replace(value) => *body.pointer_mut(place).unwrap() = value,
        Change::Remove => {
            let Some((parent, name)) = place.rsplit_once('/') else { return };
            let parent = body.pointer_mut(parent).unwrap();
            if let Some(list) = parent.as_array_mut() {
                list.remove(name.parse().unwrap());
            } else {
                let name = name.replace("~1", "/").replace("~0", "~");
                parent.as_object_mut().unwrap().remove(&name);
            }
        }
        Change::Add(name, value) => match body.pointer_mut(place).unwrap() {
            Value::Array(list) => list.push(value),
            Value::Object(fields) => drop(fields.insert(name, value)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        },
    }
}

/// A limit that was lost or became large is small again; one that is wrong stays wrong.
fn bound(body: &mut Value, limit: &str) {
    let Some(fields) = body.as_object_mut() else { return };
    for name in LIMITS {
        let is_large = fields.get(name).is_some_and(|limit| limit.as_u64().is_some_and(|n| n > 1));
        let is_lost = name == limit && fields.get(name).is_none_or(Value::is_null);
        if is_large || is_lost {
            fields.insert(name.to_owned(), 1.into());
        }
    }
}

fn random_requests(gateway: &Gateway) {
    let requests = good();
    for (path, body) in &requests {
        let answer = gateway.post(path, body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.json);
    }
    let mut runner =
        TestRunner::new(Config { cases: 1_500, failure_persistence: None, ..Config::default() });
    let changes = prop::collection::vec(change(), 1..4);
    let outcome = runner.run(&(prop::sample::select(requests), changes), |request| {
        let ((path, mut body), changes) = request;
        let limit = LIMITS.into_iter().find(|name| body.get(name).is_some());
        for (place, change) in changes {
            apply(&mut body, &place, change);
        }
        bound(&mut body, limit.unwrap_or("none"));
        let answer = gateway.post(path, body.to_string().as_bytes());
        prop_assert!(answer.status < 500, "{}: {path} {body}", answer.json);
        if answer.status != 200 {
            let message = answer.json["error"]["message"].as_str();
            prop_assert!(message.is_some_and(|message| !message.is_empty()), "{}", answer.json);
        }
        Ok(())
    });
    outcome.unwrap();
}

/// Bodies that are no JSON, cut, or no text at all.
fn random_bytes(gateway: &Gateway) {
    let cut = (prop::sample::select(good()), any::<Index>()).prop_map(|((path, body), at)| {
        let mut bytes = body.to_string().into_bytes();
        bytes.truncate(at.index(bytes.len()));
        (path, bytes)
    });
    let noise = prop::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| ("/v1/messages", bytes));
    let mut runner =
        TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&prop_oneof![cut, noise], |(path, bytes)| {
        let answer = gateway.post(path, &bytes);
        prop_assert_eq!(answer.status, 400, "{}", answer.json);
        Ok(())
    });
    outcome.unwrap();
}

/// Sends the beginning of a head, and then a byte a second; gives what comes back before the gateway
/// has had enough.
fn drip(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    stream.write_all(b"POST /v1/messages HTTP/1.1\r\nx-slow: ").unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
    for _ in 0..120 {
        match stream.read(&mut buffer) {
            Ok(0) => return String::from_utf8_lossy(&answer).into_owned(),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                // A gateway that has closed the connection takes no more, which the next read tells.
                let _closed = stream.write_all(b"a");
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return String::new(),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the gateway waits for ever");
}

#[test]
fn whatever_comes_the_gateway_says_what_is_wrong_and_goes_on() {
    let gateway = Gateway::start(&["--local"]);
    let address = gateway.url("").trim_start_matches("http://").to_owned();
    let connect = |_| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(b"POST /v1/messages HTTP/1.1\r\n").unwrap();
        stream
    };
    let stalled: Vec<_> = (0..STALLED).map(connect).collect();
    std::thread::scope(|scope| {
        let dripping = scope.spawn(|| drip(&address));
        random_bytes(&gateway);
        random_requests(&gateway);
        let answer = dripping.join().unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    });
    for mut stream in stalled {
        let mut rest = Vec::new();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let closed = stream.read_to_end(&mut rest);
        let is_reset = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
        assert!(closed.as_ref().is_ok() || closed.as_ref().is_err_and(is_reset), "{closed:?}");
    }
    let long = format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(1 << 20));
    let refused = gateway.raw_head(&long);
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431"), "{refused}");
    assert_eq!(gateway.get("/health").status, 200);
}
