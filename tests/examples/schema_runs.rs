//! Answers of SmolLM2 that are held to a JSON schema, checked one by one:
//! `cargo run -p umbel-tests --example schema_runs -- 200` takes how many, each with a seed of its own.

#![allow(clippy::print_stdout, reason = "what it measures is what it is for")]

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use umbel_tests::gateway::Gateway;

/// Tokens in which every form below comes to its end, and then some.
const ANSWER_TOKENS: u32 = 256;

/// What is asked, what its answer must look like, and whether it does.
struct Form {
    question: &'static str,
    schema: Value,
    holds: fn(&Value) -> bool,
}

fn main() -> anyhow::Result<()> {
    let count = std::env::args().nth(1).map_or(Ok(200), |count| count.parse::<usize>())?;
    let gateway = Gateway::start(&["--local"]);
    let forms = [person(), list(), choice()];
    let (mut good, mut tokens) = (0, 0);
    for seed in 0..count {
        let form = &forms[seed % forms.len()];
        match try_once(&gateway, form, seed) {
            Ok(used) => {
                good += 1;
                tokens += used;
            }
            Err(error) => println!("seed {seed}: {error:#}"),
        }
    }
    println!("{good} of {count} are valid JSON of their schema, {tokens} tokens");
    ensure!(good == count, "not all of them are");
    Ok(())
}

/// The tokens of an answer that is as it must be.
fn try_once(gateway: &Gateway, form: &Form, seed: usize) -> anyhow::Result<u64> {
    let named = json!({ "name": "answer", "strict": true, "schema": form.schema });
    let body = json!({
        "model": "smollm2-135m",
        "messages": [{ "role": "user", "content": form.question }],
        "response_format": { "type": "json_schema", "json_schema": named },
        "temperature": 1,
        "seed": seed,
        "max_tokens": ANSWER_TOKENS,
    });
    let answer = gateway.post("/v1/chat/completions", body.to_string().as_bytes());
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.json);
    let choice = &answer.json["choices"][0];
    let text = choice["message"]["content"].as_str().context("an answer without text")?;
    ensure!(choice["finish_reason"] == "stop", "{}: {text}", choice["finish_reason"]);
    let value: Value = serde_json::from_str(text).with_context(|| text.to_owned())?;
    ensure!((form.holds)(&value), "not of the form: {text}");
    answer.json["usage"]["completion_tokens"].as_u64().context("no usage")
}

/// Objects with strings, bounded numbers and one of several words.
fn person() -> Form {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 20 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "colour": { "enum": ["red", "green", "blue"] },
        },
        "required": ["name", "age", "colour"],
        "additionalProperties": false,
    });
    let holds = |value: &Value| {
        value.as_object().is_some_and(|fields| fields.len() == 3)
            && value["name"].as_str().is_some_and(|name| name.chars().count() <= 20)
            && value["age"].as_u64().is_some_and(|age| age <= 120)
            && ["red", "green", "blue"].iter().any(|&colour| value["colour"] == colour)
    };
    Form { question: "Invent a person.", schema, holds }
}

/// Lists of objects, with a boolean and a field that need not be there.
fn list() -> Form {
    let item = json!({
        "type": "object",
        "properties": {
            "what": { "type": "string", "maxLength": 12 },
            "done": { "type": "boolean" },
            "hours": { "type": "number", "minimum": 0, "maximum": 9 },
        },
        "required": ["what", "done"],
        "additionalProperties": false,
    });
    let schema = json!({ "type": "array", "items": item, "minItems": 1, "maxItems": 3 });
    let holds = |value: &Value| {
        value.as_array().is_some_and(|items| {
            (1..=3).contains(&items.len())
                && items.iter().all(|item| {
                    item["what"].as_str().is_some_and(|what| what.chars().count() <= 12)
                        && item["done"].is_boolean()
                        && item.get("hours").is_none_or(|hours| {
                            hours.as_f64().is_some_and(|hours| (0.0..=9.0).contains(&hours))
                        })
                })
        })
    };
    Form { question: "List what is to be done in a garden.", schema, holds }
}

/// One of two forms, nested.
fn choice() -> Form {
    let schema = json!({
        "type": "object",
        "properties": {
            "answer": { "anyOf": [{ "type": "null" }, { "type": "string", "pattern": "^[a-z]{1,9}$" }] },
            "sure": { "type": "object", "properties": { "percent": { "type": "integer",
                "minimum": 0, "maximum": 100 } }, "required": ["percent"],
                "additionalProperties": false },
        },
        "required": ["answer", "sure"],
        "additionalProperties": false,
    });
    let holds = |value: &Value| {
        let word = |text: &str| {
            (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase())
        };
        (value["answer"].is_null() || value["answer"].as_str().is_some_and(word))
            && value["sure"]["percent"].as_u64().is_some_and(|percent| percent <= 100)
    };
    Form { question: "What is the capital of France, and how sure are you?", schema, holds }
}
