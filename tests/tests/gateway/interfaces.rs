//! Responses, functions in Anthropic's interface, and gateways in the processes of others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use umbel_tests::gateway::{Answer, Gateway};
use umbel_tests::process::UmbelProcess;
use umbel_tests::prometheus;
use umbel_tests::swarm::{Server, cache, checkpoint, report, serve, umbel};

const MODEL: &str = "smollm2-135m";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const CHAT: &str = "/v1/chat/completions";

/// How long a gateway that stops waits for answers under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a request may take on a machine that runs many tests at once.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

fn body(fields: Value, more: Value) -> Value {
    let mut body = json!({ "model": MODEL, "temperature": 0 });
    for part in [fields, more] {
        body.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
    }
    body
}

fn response(more: Value) -> Value {
    body(json!({ "input": "Say hello", "max_output_tokens": 12 }), more)
}

fn message(more: Value) -> Value {
    let turns = json!([{ "role": "user", "content": "How is the weather in Oslo?" }]);
    body(json!({ "messages": turns, "max_tokens": 60 }), more)
}

fn tools() -> Value {
    let schema = json!({
        "type": "object", "properties": { "city": { "type": "string", "maxLength": 12 } },
        "required": ["city"], "additionalProperties": false,
    });
    json!([{ "name": "weather", "description": "The weather of a city", "input_schema": schema }])
}

fn refused(answer: &Answer, param: &str) {
    assert_eq!(answer.status, 400, "{}", answer.json);
    let message = answer.json["error"]["message"].as_str().unwrap();
    let named = answer.json["error"]["param"] == param || message.contains(param);
    assert!(named, "{param}: {}", answer.json);
}

#[test]
fn the_newer_interfaces_answer_as_the_older_one_does() {
    let gateway = Gateway::start(&["--local"]);
    responses(&gateway);
    functions(&gateway);
    answers_that_are_begun(&gateway);
    for (change, param) in [
        (json!({ "input": [] }), "input"),
        (json!({ "input": [{ "role": "bob", "content": "x" }] }), "input"),
        (json!({ "input": [{ "type": "item_reference", "id": "x" }] }), "input"),
        (json!({ "max_output_tokens": 0 }), "max_output_tokens"),
        (json!({ "previous_response_id": "resp_1" }), "previous_response_id"),
        (json!({ "background": true }), "background"),
        (json!({ "tools": [{ "type": "web_search" }] }), "tools"),
        (json!({ "reasoning": { "effort": "high" } }), "reasoning"),
        (json!({ "truncation": "auto" }), "truncation"),
        (json!({ "text": { "format": { "type": "xml" } } }), "xml"),
        (json!({ "colour": 1 }), "colour"),
    ] {
        refused(&gateway.post(RESPONSES, response(change).to_string().as_bytes()), param);
    }
    let use_by_user = json!([{ "role": "user", "content":
        [{ "type": "tool_use", "id": "x", "name": "weather", "input": {} }] }]);
    for (change, param) in [
        (json!({ "tool_choice": { "type": "any" } }), "no tools"),
        (json!({ "tools": tools(), "tool_choice": { "type": "tool", "name": "x" } }), "\"x\""),
        (json!({ "tools": tools(), "tool_choice": { "type": "tool" } }), "no tool"),
        (json!({ "tools": [{ "name": "a b", "input_schema": {} }] }), "name"),
        (
            json!({ "tools": [{ "type": "bash_20250124", "name": "bash", "input_schema": {} }] }),
            "tool",
        ),
        (json!({ "messages": use_by_user }), "the assistant asks"),
        (json!({ "messages": [{ "role": "user", "content": [{ "type": "image" }] }] }), "content"),
        (json!({ "stop_sequences": vec!["x"; 65] }), "stop_sequences has at most 64"),
    ] {
        refused(&gateway.post(MESSAGES, message(change).to_string().as_bytes()), param);
    }
}

fn responses(gateway: &Gateway) {
    let turns = json!([{ "role": "user", "content": "Say hello" }]);
    let chat = body(json!({ "messages": turns, "max_tokens": 12 }), json!({}));
    let expected = gateway.ask(CHAT, &chat)["choices"][0]["message"]["content"].clone();
    let whole = gateway.ask(RESPONSES, &response(json!({})));
    assert_eq!(whole["output"][0]["content"][0]["text"], expected);
    assert_eq!((&whole["status"], &whole["object"]), (&json!("incomplete"), &json!("response")));
    assert_eq!(whole["usage"]["output_tokens"], 12);

    let parts =
        json!([{ "role": "user", "content": [{ "type": "input_text", "text": "Say hello" }] }]);
    let same = gateway.ask(RESPONSES, &response(json!({ "input": parts })));
    assert_eq!(same["output"][0]["content"][0]["text"], expected);
    let told = response(json!({ "instructions": "Answer in French." }));
    assert_ne!(gateway.ask(RESPONSES, &told)["output"][0]["content"][0]["text"], expected);

    let events: Vec<_> = gateway.stream(RESPONSES, &response(json!({ "stream": true }))).collect();
    let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    let text: String = deltas.map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(expected, text);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
    }
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.incomplete", "{last}");
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], text);
    assert_eq!(events[0]["response"]["status"], "in_progress");
}

fn functions(gateway: &Gateway) {
    let any = json!({ "tools": tools(), "tool_choice": { "type": "any" } });
    let whole = gateway.ask(MESSAGES, &message(any.clone()));
    let call = &whole["content"][0];
    assert_eq!(
        (&whole["stop_reason"], &call["type"]),
        (&json!("tool_use"), &json!("tool_use")),
        "{whole}"
    );
    assert_eq!((&call["name"], call["input"]["city"].is_string()), (&json!("weather"), true));

    let mut streamed = message(any);
    streamed["stream"] = json!(true);
    let events: Vec<_> = gateway.stream(MESSAGES, &streamed).collect();
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let block = ["content_block_start", "content_block_delta", "content_block_stop"];
    let expected = [&["message_start"], &block[..], &["message_delta", "message_stop"]].concat();
    assert_eq!(kinds, expected);
    let input = events[2]["delta"]["partial_json"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(input).unwrap(), call["input"]);
    assert_eq!(events[4]["delta"]["stop_reason"], "tool_use");

    let result = |more: Value| {
        let mut result =
            json!({ "type": "tool_result", "tool_use_id": call["id"], "content": "rain" });
        result.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let turns = json!([
            { "role": "user", "content": "How is the weather in Oslo?" },
            { "role": "assistant", "content": [call] },
            { "role": "user", "content": [result, { "type": "text", "text": "Say it in one word." }] },
        ]);
        gateway.ask(MESSAGES, &message(json!({ "tools": tools(), "messages": turns })))
    };
    let told = result(json!({}));
    assert!(told["usage"]["input_tokens"].as_u64() > whole["usage"]["input_tokens"].as_u64());
    let failed = result(json!({ "is_error": true }));
    assert!(failed["usage"]["input_tokens"].as_u64() > told["usage"]["input_tokens"].as_u64());
}

/// An answer goes on with the assistant's words where they are the last.
fn answers_that_are_begun(gateway: &Gateway) {
    let text = |answer: &Value| answer["content"][0]["text"].as_str().unwrap().to_owned();
    let question = json!({ "role": "user", "content": "How is the weather in Oslo?" });
    let never: Vec<_> = (0..64).map(|number| format!("never {number}")).collect();
    let plain = json!({ "max_tokens": 12, "stop_sequences": never });
    let said = text(&gateway.ask(MESSAGES, &message(plain)));
    let (begin, _) = said.match_indices(' ').nth(2).unwrap();
    let turns = json!([question, { "role": "assistant", "content": said[..begin] }]);
    let begun = message(json!({ "max_tokens": 6, "messages": turns }));
    let rest = text(&gateway.ask(MESSAGES, &begun));
    assert!(said[begin..].starts_with(&rest) && !rest.is_empty(), "{said:?} {rest:?}");

    let form = json!({ "type": "json_schema", "schema": { "type": "object" } });
    let formed = json!({ "messages": turns, "output_config": { "format": form } });
    refused(&gateway.post(MESSAGES, message(formed).to_string().as_bytes()), "cannot be begun");
    let asks = json!({ "type": "tool_use", "id": "x", "name": "weather", "input": {} });
    let asks = json!({ "messages": [question, { "role": "assistant", "content": [asks] }] });
    refused(&gateway.post(MESSAGES, message(asks).to_string().as_bytes()), "tell its result");
}

#[test]
fn the_page_is_for_everybody_and_what_it_shows_for_those_with_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let key = "a-key-of-some-length";
    let keys = format!("[[key]]\nname = 'ann'\nkey = '{key}'\nrequests_per_minute = 1\n");
    std::fs::write(&file, keys).unwrap();
    let gateway = Gateway::start(&["--local", "--keys", file.to_str().unwrap()]);
    for path in ["/", "/page/main.js", "/page/style.css"] {
        assert_eq!(gateway.get(path).status, 200, "{path}");
    }
    assert_eq!(gateway.get("/page/other.js").status, 404);
    assert_eq!(gateway.get("/page/..%2fpage.rs").status, 404);
    let page = gateway.raw(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(page.contains("content-security-policy: default-src 'none'"), "{page}");
    assert!(page.contains("<title>Umbel</title>"), "{page}");
    assert_eq!(gateway.get("/swarm").status, 401);
    // Looking spends nothing of the budget of one request a minute.
    for _ in 0..3 {
        let head = "GET /swarm HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
        let picture = gateway.raw(format!("{head}authorization: Bearer {key}\r\n\r\n").as_bytes());
        assert!(picture.starts_with("HTTP/1.1 200"), "{picture}");
        assert!(picture.contains("\"local\":true"), "{picture}");
    }
}

#[test]
fn pages_of_other_sites_ask_in_vain() {
    let gateway = Gateway::start(&["--local"]);
    let ask = |site: &str| {
        let body = response(json!({})).to_string();
        gateway.post_with(RESPONSES, ("sec-fetch-site", site), body.as_bytes()).status
    };
    assert_eq!([ask("cross-site"), ask("same-origin"), ask("none")], [403, 200, 200]);
    // A site that has pointed its name at this machine.
    let swarm = |gateway: &Gateway| {
        let head = "GET /swarm HTTP/1.1\r\nhost: evil.example:8080\r\nconnection: close\r\n\r\n";
        gateway.raw(head.as_bytes())[..12].to_owned()
    };
    assert_eq!(swarm(&gateway), "HTTP/1.1 403");
    assert_eq!(swarm(&Gateway::start(&["--local", "--allow-anyone"])), "HTTP/1.1 200");
}

#[test]
fn pages_of_an_origin_that_was_named_ask_with_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    std::fs::write(&file, "[[key]]\nname = 'ann'\nkey = 'a-key-of-some-length'\n").unwrap();
    let named = "https://chat.example";
    let keys = ["--keys", file.to_str().unwrap(), "--allow-origin", named];
    let gateway = Gateway::start(&[&["--local"], &keys[..]].concat());
    let body = message(json!({ "max_tokens": 1 })).to_string();
    let ask = |method: &str, origin: &str, more: &str| {
        let (length, from) =
            (body.len(), format!("origin: {origin}\r\nsec-fetch-site: cross-site"));
        let head = format!("{method} {MESSAGES} HTTP/1.1\r\nhost: x\r\n{from}\r\n{more}");
        let head = format!("{head}connection: close\r\ncontent-length: {length}\r\n\r\n");
        gateway.raw(format!("{head}{body}").as_bytes()).to_lowercase()
    };
    let preflight = "access-control-request-method: POST\r\n\
                     access-control-request-headers: authorization,content-type\r\n";
    let key = "authorization: Bearer a-key-of-some-length\r\n";
    let allowed = format!("access-control-allow-origin: {named}\r\n");

    let may = ask("OPTIONS", named, preflight);
    assert!(may.starts_with("http/1.1 200") && may.contains(&allowed), "{may}");
    assert!(may.contains("access-control-allow-headers: authorization,content-type\r\n"), "{may}");
    assert!(may.contains("access-control-allow-methods: get,post,delete\r\n"), "{may}");
    let answer = ask("POST", named, key);
    assert!(answer.starts_with("http/1.1 200") && answer.contains(&allowed), "{answer}");
    assert!(answer.contains("vary: origin"), "{answer}");
    let unknown = ask("POST", named, "");
    assert!(unknown.starts_with("http/1.1 401") && unknown.contains(&allowed), "{unknown}");

    let other = "https://evil.example";
    let may_not = ask("OPTIONS", other, preflight);
    assert!(!may_not.contains("access-control-allow-origin"), "{may_not}");
    let refused = ask("POST", other, key);
    assert!(refused.starts_with("http/1.1 403"), "{refused}");
    assert!(!refused.contains("access-control-allow-origin"), "{refused}");

    umbel(&["gateway", "--local", "--allow-origin", named]).refused("--allow-origin needs --keys");
}

#[test]
fn chunks_say_where_their_time_went_for_who_asks() {
    let gateway = Gateway::start(&["--local"]);
    let turns = json!([{ "role": "user", "content": "Say hello" }]);
    let traced =
        |more: Value| body(json!({ "messages": turns, "max_tokens": 6, "trace": true }), more);
    let events: Vec<_> = gateway.stream(CHAT, &traced(json!({ "stream": true }))).collect();
    let times: Vec<_> = events.iter().filter(|event| event["umbel"].is_object()).collect();
    assert_eq!(times.len(), 6, "one for each token");
    let hop = &times[0]["umbel"]["hops"][0];
    assert_eq!((&hop["peer"], &hop["start"], &hop["end"]), (&Value::Null, &json!(0), &json!(30)));
    assert!(hop["compute_ms"].as_f64().unwrap() > 0.0, "{hop}");
    refused(&gateway.post(CHAT, traced(json!({})).to_string().as_bytes()), "trace");
}

/// The gateway in the process of a server.
fn attached(server: &mut Server) -> String {
    server.wait_for_line("gateway ").expect("the gateway is ready")
}

#[test]
fn a_server_answers_over_http_as_well_and_ends_in_good_order() {
    let mut first = serve(&[MODEL, "--blocks", "0..15", "--gateway", "127.0.0.1:0"]);
    let second = serve(&[MODEL, "--blocks", "15..30", "--join", first.address()]);
    let url = attached(&mut first);
    let gateway = Gateway::of(second.into_process(), url);
    let turns = json!([{ "role": "user", "content": "Say hello" }]);
    let chat = body(json!({ "messages": turns, "max_tokens": 12 }), json!({}));
    assert_eq!(gateway.ask(CHAT, &chat)["usage"]["completion_tokens"], 12);
    first.assert_no_errors();
    let stopped = first.terminate();
    assert!(stopped.status.success(), "{}", stopped.stderr);
}

#[test]
fn a_server_says_at_once_that_it_leaves_and_a_second_signal_ends_the_answer_under_way() {
    let mut server = serve(&[MODEL, "--gateway", "127.0.0.1:0", "--drain-timeout", "300"]);
    let (url, address) = (attached(&mut server), server.address().to_owned());
    let gateway = Gateway::of(server.into_process(), url);
    let long = json!({ "model": MODEL, "prompt": "Once", "max_tokens": 8_000, "stream": true });
    let mut events = gateway.stream("/v1/completions", &long);
    events.next().unwrap();
    let mut process = gateway.into_process();
    process.interrupt();
    assert!(process.wait_for_stderr("stopping"), "{}", process.stderr());
    let status = report(&umbel(&["status", "--json", "--join", &address]));
    assert_eq!(status["servers"][0]["draining"], true, "{status}");
    assert!(process.is_running(), "{}", process.stderr());
    process.interrupt();
    process.wait().unwrap().succeeded();
}

#[test]
fn a_server_that_stops_is_there_for_the_answers_that_its_gateway_has_begun() {
    /// Texts of the request, each of which is read in a session of its own.
    const TEXTS: usize = 200;
    let more = ["--gateway", "127.0.0.1:0", "--answers", "1", "--metrics", "127.0.0.1:0"];
    let mut server = serve(&[&[&*checkpoint("llama")], &more[..]].concat());
    let (gateway, metrics) = (attached(&mut server), prometheus::url(&server.stderr()));
    let models: Value =
        serde_json::from_str(&prometheus::get(&format!("{gateway}/v1/models")).1).unwrap();
    let texts = vec![vec![7; 100]; TEXTS];
    let body = json!({ "model": models["data"][0]["id"], "input": texts }).to_string();
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nconnection: close";
    let mut stream = TcpStream::connect(gateway.trim_start_matches("http://")).unwrap();
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();

    let opened = || prometheus::metric(&prometheus::get(&metrics).1, "umbel_sessions_opened_total");
    let deadline = Instant::now() + READ_TIMEOUT;
    while opened() < 4.0 {
        assert!(Instant::now() < deadline, "no text is read");
    }
    assert!(opened() < TEXTS as f64, "all texts are read");
    let stopping = thread::spawn(move || server.terminate());
    let mut answer = String::new();
    stream.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
    stream.read_to_string(&mut answer).expect("it is answered whole");
    let stopped = stopping.join().unwrap();
    stopped.succeeded();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}\n{}", stopped.stderr);
    let answer: Value = serde_json::from_str(body).expect("it is answered whole");
    assert_eq!(answer["data"].as_array().map(Vec::len), Some(TEXTS));
}

/// A demo of two servers with a gateway.
fn demo() -> Gateway {
    let cache = cache().to_str().unwrap().to_owned();
    let arguments = ["--cache-dir", &cache, "demo", "--servers", "2", "--gateway", "127.0.0.1:0"];
    let process = UmbelProcess::start(&arguments).unwrap();
    let url = process.address().to_owned();
    Gateway::of(process, url)
}

#[test]
fn a_demo_that_is_told_twice_to_stop_stops_in_the_middle_of_an_answer() {
    let gateway = demo();
    let long = response(json!({ "stream": true, "max_output_tokens": 8_000 }));
    let mut events = gateway.stream(RESPONSES, &long);
    events.next().unwrap();
    let mut process = gateway.into_process();
    process.interrupt();
    assert!(process.wait_for_stderr("once more stops at once"));
    assert!(process.is_running(), "an answer is under way");
    let told = Instant::now();
    process.interrupt();
    process.wait().unwrap().succeeded();
    assert!(told.elapsed() < DRAIN_TIMEOUT / 2, "{:?}", told.elapsed());
}

#[test]
fn a_demo_answers_over_http() {
    let gateway = demo();
    let whole = gateway.ask(RESPONSES, &response(json!({})));
    assert_eq!(whole["usage"]["output_tokens"], 12);
    let stopped = gateway.into_process().terminate().unwrap();
    assert!(stopped.status.success(), "{}", stopped.stderr);
}
