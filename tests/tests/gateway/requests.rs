//! The gateway in front of a swarm of three processes: answers, streams, faults and bad requests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use umbel_tests::gateway::{Answer, Events, Gateway};
use umbel_tests::swarm::{Server, report, serve, umbel};

const MODEL: &str = "smollm2-135m";
const CHAT: &str = "/v1/chat/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const COMPLETIONS: &str = "/v1/completions";

/// Servers of a third of the blocks each, `replicas` for each third.
fn swarm(replicas: usize) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for blocks in ["0..10", "10..20", "20..30"] {
        for _ in 0..replicas {
            let join = servers.first().map(|first| first.address().to_owned());
            let mut arguments = vec![MODEL, "--blocks", blocks];
            arguments.extend(join.iter().flat_map(|address| ["--join", address]));
            servers.push(serve(&arguments));
        }
    }
    servers
}

fn gateway(servers: &[Server], arguments: &[&str]) -> Gateway {
    Gateway::start(&[&["--join", servers[0].address()], arguments].concat())
}

fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({
        "model": MODEL,
        "messages": [{ "role": "user", "content": text }],
        "temperature": 0,
        "max_tokens": 16,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// What one process answers.
fn local(arguments: &[&str]) -> Value {
    report(&umbel(&[&["generate", "--local", "--json"], arguments].concat()))
}

/// The text of each answer of a stream, and its last event.
fn collect(events: Events) -> (Vec<String>, Value) {
    let (mut texts, mut last) = (Vec::new(), Value::Null);
    for event in events {
        for choice in event["choices"].as_array().unwrap() {
            let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
            texts.resize(texts.len().max(index + 1), String::new());
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            texts[index].push_str(text.unwrap_or(""));
        }
        last = event;
    }
    (texts, last)
}

#[test]
fn answers_are_those_of_one_process_whole_or_as_a_stream() {
    let servers = swarm(1);
    let gateway = gateway(&servers, &[]);
    assert_eq!(gateway.get("/v1/models").json["data"][0]["id"], MODEL);
    assert_eq!(gateway.get("/ready").status, 200);

    let arguments = ["--chat", "--prompt", "Say hello", "--max-tokens", "16"];
    let expected = local(&arguments);
    let text = expected["text"].as_str().unwrap();
    let whole = gateway.ask(CHAT, &chat("Say hello", json!({})));
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let tokens = expected["prompt_ids"].as_array().unwrap().len();
    let usage = json!({
        "prompt_tokens": tokens, "completion_tokens": 16, "total_tokens": tokens + 16,
    });
    assert_eq!(whole["usage"], usage);

    let options = json!({ "stream": true, "stream_options": { "include_usage": true }, "n": 2 });
    let (texts, last) = collect(gateway.stream(CHAT, &chat("Say hello", options)));
    assert_eq!(texts, [text, text], "greedy answers are equal");
    assert_eq!(last["usage"]["completion_tokens"], 32);

    seeds_and_probabilities(&gateway);
    texts_that_go_on(&gateway);
    forms(&gateway);
    functions(&gateway);
    vectors(&gateway);
    drop(gateway);
    servers.iter().for_each(|server| server.assert_no_errors());
}

fn seeds_and_probabilities(gateway: &Gateway) {
    let drawn = json!({ "temperature": 1.2, "seed": 7, "n": 2, "max_tokens": 8 });
    let draw = || {
        let answer = gateway.ask(CHAT, &chat("Tell a story", drawn.clone()));
        let content = |index: usize| answer["choices"][index]["message"]["content"].clone();
        [content(0), content(1)]
    };
    let first = draw();
    assert_ne!(first[0], first[1], "each answer has a seed of its own");
    assert_eq!(first, draw(), "the same seed gives the same answers");

    let wanted = json!({ "logprobs": true, "top_logprobs": 3, "max_tokens": 4 });
    let answer = gateway.ask(CHAT, &chat("Say hello", wanted));
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(entries.len(), 4);
    for entry in entries {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&entry["token"], &entry["logprob"]));
        let chances: f64 = top.iter().map(|top| top["logprob"].as_f64().unwrap().exp()).sum();
        assert!(chances > 0.1 && chances < 1.0, "{chances}");
    }
}

fn schema(schema: &Value) -> Value {
    let named = json!({ "name": "answer", "strict": true, "schema": schema });
    json!({ "response_format": { "type": "json_schema", "json_schema": named } })
}

/// Answers to a schema are held to it, whatever the model would say.
fn forms(gateway: &Gateway) {
    let person = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 20 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "colour": { "enum": ["red", "green", "blue"] },
        },
        "required": ["name", "age", "colour"],
        "additionalProperties": false,
    });
    for seed in 0..20 {
        let mut more = schema(&person);
        more["seed"] = json!(seed);
        more["temperature"] = json!(1);
        more["max_tokens"] = json!(100);
        let answer = gateway.ask(CHAT, &chat("Invent a person.", more));
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let person: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(person["age"].as_u64().unwrap() <= 120, "{text}");
        assert!(["red", "green", "blue"].contains(&person["colour"].as_str().unwrap()), "{text}");
    }
    let object = json!({ "response_format": { "type": "json_object" }, "max_tokens": 3 });
    let answer = gateway.ask(CHAT, &chat("Say hello", object));
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().starts_with('{'));

    // " Paris" cannot come where its logit is 100 less, and comes at once where it is 100 more.
    let prompt = "The capital of France is";
    let ids = &local(&["--prompt", prompt, "--max-tokens", "1"])["token_ids"];
    let first = |bias: f32| {
        let body = json!({
            "model": MODEL, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 0,
            "logit_bias": { ids[0].to_string(): bias },
        });
        gateway.ask(COMPLETIONS, &body)["choices"][0]["logprobs"]["tokens"][0].clone()
    };
    assert_ne!(first(0.0), first(-100.0));
    assert_eq!(first(0.0), first(100.0));
    let again = json!({ "presence_penalty": 2, "frequency_penalty": 2, "max_tokens": 60 });
    let plain = gateway.ask(CHAT, &chat("Say it again and again", json!({ "max_tokens": 60 })));
    assert_ne!(
        plain["choices"][0]["message"],
        gateway.ask(CHAT, &chat("Say it again and again", again))["choices"][0]["message"]
    );
}

fn named(name: &str) -> Value {
    json!({ "type": "function", "function": { "name": name } })
}

/// Functions of these names, which take a city, and whether they must be called.
fn tool_choice(choice: &Value, names: &[&str]) -> Value {
    let city = json!({ "type": "string", "maxLength": 12 });
    let parameters = json!({
        "type": "object", "properties": { "city": city }, "required": ["city"],
        "additionalProperties": false,
    });
    let tool = |name: &&str| {
        let function =
            json!({ "name": name, "description": "Says how it is", "parameters": parameters });
        json!({ "type": "function", "function": function })
    };
    let tools: Vec<_> = names.iter().map(tool).collect();
    json!({ "tools": tools, "tool_choice": choice, "max_tokens": 60 })
}

/// A function is called where it must be, and its result is taken up.
fn functions(gateway: &Gateway) {
    let question = "How is the weather in Oslo?";
    let forced = chat(question, tool_choice(&json!("required"), &["weather", "time"]));
    let whole = gateway.ask(CHAT, &forced);
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    let call = choice["message"]["tool_calls"][0].clone();
    let name = call["function"]["name"].as_str().unwrap();
    assert!(["weather", "time"].contains(&name), "{whole}");
    let arguments: Value =
        serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["city"].is_string(), "{whole}");
    assert_eq!(choice["message"]["content"], Value::Null);

    let mut streamed = chat(question, tool_choice(&named("time"), &["weather", "time"]));
    streamed["stream"] = json!(true);
    let (mut calls, mut last, mut text) = (Vec::new(), Value::Null, String::new());
    for event in gateway.stream(CHAT, &streamed) {
        let choice = &event["choices"][0];
        text.push_str(choice["delta"]["content"].as_str().unwrap_or(""));
        calls.extend(choice["delta"]["tool_calls"].as_array().cloned().unwrap_or_default());
        last = choice["finish_reason"].clone();
    }
    assert_eq!((calls.len(), text.as_str(), last), (1, "", json!("tool_calls")));
    assert_eq!(calls[0]["function"]["name"], "time");
    // As clients send back what they had in a stream, with every field of a message that they know.
    let mut again = chat(question, tool_choice(&json!("none"), &["weather", "time"]));
    let turns = again["messages"].as_array_mut().unwrap();
    turns.push(json!({
        "role": "assistant", "content": null, "refusal": null, "annotations": null,
        "audio": null, "function_call": null, "tool_calls": [calls[0]],
    }));
    turns.push(json!({ "role": "tool", "tool_call_id": calls[0]["id"], "content": "noon" }));
    assert!(gateway.ask(CHAT, &again)["choices"][0]["message"]["content"].is_string());

    let mut told = chat(question, tool_choice(&json!("auto"), &["weather", "time"]));
    let turns = told["messages"].as_array_mut().unwrap();
    turns.push(json!({ "role": "assistant", "content": null, "tool_calls": [call] }));
    turns.push(json!({ "role": "tool", "tool_call_id": call["id"], "content": "rain, 4 degrees" }));
    let answer = gateway.ask(CHAT, &told);
    assert_eq!(answer["choices"].as_array().unwrap().len(), 1);
    assert!(answer["usage"]["prompt_tokens"].as_u64() > whole["usage"]["prompt_tokens"].as_u64());
}

/// Vectors of texts have length 1, do not depend on what else is asked for, and are nearer where the
/// texts are.
fn vectors(gateway: &Gateway) {
    let texts = ["The cat sleeps on the sofa.", "A cat is asleep on a couch.", "let x = 5 + 7;"];
    let answer = gateway.ask(EMBEDDINGS, &json!({ "model": MODEL, "input": texts }));
    let vector = |entry: &Value| -> Vec<f64> {
        entry["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let vectors: Vec<_> = answer["data"].as_array().unwrap().iter().map(vector).collect();
    let product = |a: usize, b: usize| -> f64 {
        vectors[a].iter().zip(&vectors[b]).map(|(a, b)| a * b).sum()
    };
    assert_eq!((vectors.len(), vectors[0].len()), (3, 576));
    assert!((product(0, 0) - 1.0).abs() < 1e-5);
    assert!(product(0, 1) > product(0, 2), "{} {}", product(0, 1), product(0, 2));
    let alone = json!({ "model": MODEL, "input": texts[1], "dimensions": 576 });
    assert_eq!(
        gateway.ask(EMBEDDINGS, &alone)["data"][0]["embedding"],
        answer["data"][1]["embedding"]
    );
    let cut = json!({ "model": MODEL, "input": "x", "dimensions": 5 }).to_string();
    refused(&gateway.post(EMBEDDINGS, cut.as_bytes()), 400, &json!("dimensions"));
}

fn texts_that_go_on(gateway: &Gateway) {
    let prompt = "The capital of France is";
    let expected = local(&["--prompt", prompt, "--max-tokens", "8"]);
    let text = expected["text"].as_str().unwrap();
    let prompts = json!({
        "model": MODEL, "prompt": [prompt, "One, two, three,"], "max_tokens": 8, "temperature": 0,
    });
    let several = gateway.ask(COMPLETIONS, &prompts);
    assert_eq!(several["choices"][0]["text"], text);
    assert_ne!(several["choices"][1]["text"], text);

    let ids = json!({
        "model": MODEL, "prompt": expected["prompt_ids"], "max_tokens": 8, "temperature": 0,
        "echo": true, "stream": true,
    });
    let (texts, _) = collect(gateway.stream(COMPLETIONS, &ids));
    assert_eq!(texts, [format!("{prompt}{text}")]);

    let word = text.split_whitespace().nth(1).unwrap();
    let stopped = json!({
        "model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 0, "stop": word,
    });
    let stopped = gateway.ask(COMPLETIONS, &stopped);
    assert_eq!(stopped["choices"][0]["text"], text.split(word).next().unwrap());
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

#[test]
fn an_answer_goes_on_when_a_server_dies_and_ends_when_its_client_leaves() {
    let mut servers = swarm(2);
    let gateway = gateway(&servers, &["--patience", "20"]);
    let arguments = ["--chat", "--prompt", "Count to thirty", "--max-tokens", "60"];
    let expected = local(&[&arguments[..], &["--ignore-eos"]].concat());

    let options = json!({ "stream": true, "max_tokens": 60 });
    let mut events = gateway.stream(CHAT, &chat("Count to thirty", options.clone()));
    let mut text = String::new();
    for event in events.by_ref().take(12) {
        text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap());
    }
    // One of two for each third, so that a hop of the route is among them, most likely several.
    for third in [4, 2] {
        servers.remove(third).kill();
    }
    text.push_str(&collect(events).0[0]);
    assert!(expected["text"].as_str().unwrap().starts_with(&text), "{text}");
    assert!(text.len() > 20, "{text}");

    let free = kv_free(&servers);
    let more = json!({ "stream": true, "max_tokens": 2_000, "n": 4, "temperature": 1 });
    let mut events = gateway.stream(CHAT, &chat("Tell a long story", more));
    for _ in 0..12 {
        events.next().unwrap();
    }
    drop(events);
    let deadline = Instant::now() + Duration::from_secs(60);
    while kv_free(&servers) < free {
        assert!(Instant::now() < deadline, "sessions outlive the client that asked for them");
    }

    // An answer that is under way when the gateway is told to stop comes to its end.
    let events = gateway.stream(CHAT, &chat("Count to thirty", options));
    let stopping = std::thread::spawn(move || gateway.into_process().terminate().unwrap());
    let (texts, _) = collect(events);
    assert_eq!(texts[0], text);
    let stopped = stopping.join().unwrap();
    assert!(stopped.status.success(), "{}", stopped.stderr);
}

/// Tokens that no session has reserved, at these servers: those that were killed are still spoken of.
fn kv_free(servers: &[Server]) -> u64 {
    let status = report(&umbel(&["status", "--json", "--join", servers[0].address()]));
    let lives = |known: &&Value| {
        let peer = known["peer"].as_str().unwrap();
        servers.iter().any(|server| server.address().ends_with(peer))
    };
    let known = status["servers"].as_array().unwrap().iter().filter(lives);
    known.map(|server| server["kv_tokens_free"].as_u64().unwrap()).sum()
}

#[test]
fn bad_requests_are_refused_and_say_why() {
    // Nothing of this reaches the blocks.
    let gateway = Gateway::start(&["--local"]);
    let mut broken = tool_choice(&json!("required"), &["weather"]);
    broken["tools"][0]["function"]["parameters"] = json!({ "$ref": "#/$defs/nothing" });
    let cases = [
        (json!({ "model": "gpt" }), 404, "model", "not served"),
        (json!({ "messages": [] }), 400, "messages", "from 1 to"),
        (json!({ "messages": [{ "role": "bob", "content": "" }] }), 400, "messages[0].role", "bob"),
        (json!({ "messages": 3 }), 400, "messages", "expected a sequence"),
        (json!({ "colour": "red" }), 400, "colour", "unknown field"),
        (json!({ "temperature": 2.5 }), 400, "temperature", "from 0 to 2"),
        (json!({ "top_p": 0 }), 400, "top_p", "above 0"),
        (json!({ "n": 0 }), 400, "n", "from 1 to 8"),
        (json!({ "n": -1 }), 400, "n", "invalid value"),
        (json!({ "max_tokens": 0 }), 400, "max_tokens", "at least 1"),
        (json!({ "max_completion_tokens": 5 }), 400, "max_completion_tokens", "differ"),
        (json!({ "top_logprobs": 2 }), 400, "top_logprobs", "logprobs: true"),
        (json!({ "stream_options": {} }), 400, "stream_options", "stream: true"),
        (json!({ "stop": [1] }), 400, "stop", "a list of strings"),
        (json!({ "stop": ["a", "b", "c", "d", "e"] }), 400, "stop", "at most 4"),
        (json!({ "logit_bias": { "1": 500 } }), 400, "logit_bias", "from -100 to 100"),
        (json!({ "logit_bias": { "word": 5 } }), 400, "logit_bias", "no token id"),
        (json!({ "presence_penalty": 3 }), 400, "presence_penalty", "from -2 to 2"),
        (json!({ "response_format": { "type": "xml" } }), 400, "response_format.type", "xml"),
        (schema(&json!({ "type": "colour" })), 400, "response_format", "form"),
        (json!({ "chat_template_kwargs": 3 }), 400, "chat_template_kwargs", "expected a map"),
        (
            json!({ "chat_template_kwargs": { "bos_token": "" } }),
            400,
            "chat_template_kwargs",
            "bos_token",
        ),
        (json!({ "tools": [{ "type": "function" }] }), 400, "tools[0]", "missing field"),
        (tool_choice(&json!("required"), &[]), 400, "tool_choice", "no tools"),
        (tool_choice(&json!("required"), &["a b"]), 400, "tools", "no name"),
        (tool_choice(&named("other"), &["weather"]), 400, "tool_choice", "other"),
        (broken, 400, "tools", "form"),
        (
            json!({ "messages": [{ "role": "assistant", "content": "", "function_call": {} }] }),
            400,
            "messages[0].function_call",
            "not supported",
        ),
    ];
    for (change, status, param, message) in cases {
        let answer = gateway.post(CHAT, chat("Hi", change.clone()).to_string().as_bytes());
        refused(&answer, status, &change);
        assert_eq!(answer.json["error"]["param"], param, "{change}: {}", answer.json);
        let said = answer.json["error"]["message"].as_str().unwrap();
        assert!(said.contains(message), "{change}: {said}");
    }
    let long = chat(&"word ".repeat(9_000), json!({}));
    let long = gateway.post(CHAT, long.to_string().as_bytes());
    assert_eq!(long.json["error"]["code"], "context_length_exceeded");
    for (body, status) in [
        (&b"{"[..], 400),
        (b"{} {}", 400),
        (b"\xff\xfe", 400),
        (b"", 400),
        (&vec![b' '; 5 << 20], 413),
    ] {
        refused(&gateway.post(CHAT, body), status, &json!(body.len()));
    }
    refused(&gateway.post("/v1/nothing", b"{}"), 404, &json!("path"));
    refused(&gateway.post("/v1/models", b"{}"), 405, &json!("method"));
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{";
    let cut = gateway.raw("\0\0\0\r\n\r\n".as_bytes());
    assert!(cut.starts_with("HTTP/1.1 400"), "{cut}");
    let slow = gateway.raw(head.as_bytes());
    assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
    assert_eq!(gateway.get("/health").status, 200);
}

fn refused(answer: &Answer, status: u16, what: &Value) {
    assert_eq!(answer.status, status, "{what}: {}", answer.json);
    assert_eq!(answer.json["error"]["type"], "invalid_request_error", "{what}: {}", answer.json);
}

#[test]
fn who_has_no_key_is_refused_and_who_has_one_has_a_budget() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let keys = "[[key]]\nname = 'ann'\nkey = 'a-key-of-some-length'\nrequests_per_minute = 2\n";
    std::fs::write(&file, keys).unwrap();
    let gateway = Gateway::start(&["--local", "--keys", file.to_str().unwrap()]);
    let body = chat("Hi", json!({ "max_tokens": 1 })).to_string();
    let ask = |path: &str, header: (&str, &str)| gateway.post_with(path, header, body.as_bytes());
    assert_eq!(gateway.get("/health").status, 200, "whoever watches it needs no key");
    let none = gateway.post(CHAT, body.as_bytes());
    assert_eq!((none.status, &none.json["error"]["code"]), (401, &json!("invalid_api_key")));
    assert_eq!(ask(CHAT, ("authorization", "Bearer another-key-of-length")).status, 401);
    let messages = ask("/v1/messages", ("x-api-key", "wrong"));
    assert_eq!(messages.json["error"]["type"], "authentication_error", "{}", messages.json);
    assert_eq!(ask(CHAT, ("authorization", "Bearer a-key-of-some-length")).status, 200);
    assert_eq!(ask("/v1/messages", ("x-api-key", "a-key-of-some-length")).status, 200);
    let spent = ask(CHAT, ("authorization", "Bearer a-key-of-some-length"));
    assert_eq!((spent.status, spent.retry_after.is_some()), (429, true), "{}", spent.json);

    let missing = umbel(&["gateway", "--local", "--keys", "/nowhere/keys.toml"]);
    assert!(!missing.status.success() && missing.stderr.contains("/nowhere/keys.toml"));
    let open = umbel(&["gateway", "--local", "--listen", "0.0.0.0:0"]);
    assert!(!open.status.success() && open.stderr.contains("--keys"), "{}", open.stderr);
}

/// The Python in which the official clients are installed, where there is one: `.ci/run` makes it.
const PYTHON: Option<&str> = option_env!("UMBEL_TEST_PYTHON");

#[test]
fn the_official_clients_are_content() {
    let python = PYTHON.unwrap_or("python3");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/clients.py");
    let has_them = Command::new(python).args(["-c", "import openai, anthropic"]).output();
    if !has_them.is_ok_and(|output| output.status.success()) {
        assert!(PYTHON.is_none(), "{python} has no openai or no anthropic");
        eprintln!("not tried: {python} has no openai or no anthropic");
        return;
    }
    let servers = swarm(1);
    let gateway = gateway(&servers, &[]);
    let output = Command::new(python).args([script, gateway.url("").as_str()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn who_comes_when_the_swarm_is_full_is_told_to_come_back() {
    let server = serve(&[MODEL, "--kv-tokens", "512"]);
    let gateway = Gateway::start(&["--join", server.address(), "--patience", "1"]);
    let long = json!({ "stream": true, "max_tokens": 400, "temperature": 1 });
    let mut events = gateway.stream(CHAT, &chat("Tell a long story", long.clone()));
    events.next().unwrap();
    let full = gateway.post(CHAT, chat("Hi", long).to_string().as_bytes());
    assert_eq!((full.status, full.retry_after.as_deref()), (429, Some("2")), "{}", full.json);
    let message = full.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("all room is taken"), "{message}");
    drop(events);
    server.kill();
    let gone = gateway.post(CHAT, chat("Hi", json!({})).to_string().as_bytes());
    assert_eq!(gone.status, 503, "{}", gone.json);
}

#[test]
fn who_comes_when_too_many_wait_is_told_to_come_back() {
    let gateway = Gateway::start(&["--local", "--answers", "1", "--waiting", "0"]);
    let long = json!({ "stream": true, "max_tokens": 4_000, "temperature": 1 });
    let mut events = gateway.stream(CHAT, &chat("Tell a long story", long));
    events.next().unwrap();
    let busy = gateway.post(CHAT, chat("Hi", json!({})).to_string().as_bytes());
    assert_eq!((busy.status, busy.retry_after.as_deref()), (429, Some("2")), "{}", busy.json);
    assert_eq!(busy.json["error"]["type"], "rate_limit_error");
    drop(events);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let next = gateway.post(CHAT, chat("Hi", json!({})).to_string().as_bytes());
        if next.status == 200 {
            break;
        }
        assert!(Instant::now() < deadline, "an answer outlives the client that asked for it");
    }
}
