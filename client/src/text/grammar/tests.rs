//! Answers drawn at random, held to forms.

use serde_json::{Value, json};
use umbel_engine::{Sampler, Sampling};
use umbel_shard::{GgufTokenizer, TokenizerSource};

use super::*;
use crate::text::tools::Tools;

/// A vocabulary in which every byte is a token, with words and signs behind them.
fn tokenizer() -> Tokenizer {
    #[derive(serde::Deserialize)]
    struct Vocabulary {
        tokens: Vec<String>,
        token_types: Vec<i32>,
        merges: Vec<String>,
    }
    let text = include_str!("../../../../tests/fixtures/tokenizers/byte_level.json");
    let Vocabulary { tokens, token_types, merges } = serde_json::from_str(text).unwrap();
    let metadata = GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some("default".to_owned()),
        tokens,
        token_types,
        merges,
        bos_id: Some(1),
        eos_id: Some(2),
        unknown_id: Some(0),
        ..GgufTokenizer::default()
    };
    Tokenizer::load(&TokenizerSource::Gguf(Box::new(metadata))).unwrap()
}

fn vocabulary_size(tokenizer: &Tokenizer) -> usize {
    (0..).take_while(|&id| !tokenizer.decode(&[id]).unwrap().is_empty()).count()
}

/// An answer of a model that knows nothing.
fn draw(tokenizer: &Tokenizer, mut grammar: Grammar, seed: u64) -> String {
    let sampler = Sampler::new(Sampling::with_temperature(1.0, seed)).unwrap();
    let (size, mut ids) = (vocabulary_size(tokenizer), Vec::new());
    loop {
        assert!(ids.len() < 2_000, "an answer ends");
        let mut logits = vec![0.0; size];
        grammar.restrict(&mut logits).unwrap();
        let id = sampler.sample(&mut logits, &ids).unwrap();
        grammar.accept(id).unwrap();
        if id == 2 {
            return tokenizer.decode(&ids).unwrap();
        }
        ids.push(id);
    }
}

#[test]
fn a_model_that_knows_nothing_answers_what_the_schema_describes() {
    let tokenizer = tokenizer();
    let grammars = Grammars::new(&tokenizer, vocabulary_size(&tokenizer), &[2]).unwrap();
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 5 },
            "colour": { "enum": ["red", "green"] },
            "counts": {
                "type": "array",
                "items": { "type": "integer", "minimum": 0, "maximum": 99 },
                "minItems": 1,
                "maxItems": 3,
            },
            "more": { "$ref": "#/$defs/flag" },
        },
        "required": ["name", "colour", "counts", "more"],
        "additionalProperties": false,
        "$defs": { "flag": { "type": "boolean" } },
    });
    let grammar = grammars.json_schema(&schema).unwrap();
    for seed in 0..100 {
        let text = draw(&tokenizer, grammar.clone(), seed);
        let answer: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(answer.as_object().unwrap().len(), 4, "{text}");
        assert!(answer["name"].as_str().unwrap().chars().count() <= 5, "{text}");
        assert!(["red", "green"].contains(&answer["colour"].as_str().unwrap()), "{text}");
        let counts = answer["counts"].as_array().unwrap();
        assert!((1..=3).contains(&counts.len()), "{text}");
        let small = |count: &Value| count.as_u64().is_some_and(|count| count < 100);
        assert!(counts.iter().all(small), "{text}");
        assert!(answer["more"].is_boolean(), "{text}");
    }
}

#[test]
fn schemas_that_cannot_be_followed_are_refused() {
    let tokenizer = tokenizer();
    let size = vocabulary_size(&tokenizer);
    let grammars = Grammars::new(&tokenizer, size, &[2]).unwrap();
    for schema in [
        json!(3),
        json!({ "type": "colour" }),
        json!({ "$ref": "https://example.org/schema.json" }),
        json!({ "type": "string", "pattern": "(" }),
        json!({ "type": "object", "properties": 5 }),
    ] {
        assert!(grammars.json_schema(&schema).is_err(), "{schema}");
    }
    assert!(Grammars::new(&tokenizer, size, &[]).is_err(), "nothing ends an answer");
}

#[test]
fn no_answer_ends_with_a_token_beyond_the_vocabulary() {
    let tokenizer = tokenizer();
    let size = vocabulary_size(&tokenizer);
    let beyond = [100_000, u32::try_from(size).unwrap()];
    let grammars = Grammars::new(&tokenizer, size, &[beyond[0], 2, beyond[1]]).unwrap();
    let grammar = grammars.json_schema(&json!({ "enum": ["red"] })).unwrap();
    assert_eq!(draw(&tokenizer, grammar, 0), "\"red\"");
    assert_eq!(Grammars::new(&tokenizer, size, &beyond).err(), Some(GrammarError::Vocabulary));
}

#[test]
fn a_sign_in_the_vocabulary_is_no_text() {
    let tokenizer = tokenizer();
    let grammars = Grammars::new(&tokenizer, vocabulary_size(&tokenizer), &[2]).unwrap();
    let mut grammar = grammars.json_object().unwrap();
    let mut logits = vec![0.0; vocabulary_size(&tokenizer)];
    grammar.restrict(&mut logits).unwrap();
    let allowed: Vec<u32> =
        (0..).zip(&logits).filter(|(_, logit)| **logit == 0.0).map(|(id, _)| id).collect();
    assert!(allowed.iter().all(|id| tokenizer.bytes(*id).starts_with(b"{")), "{allowed:?}");
    assert!(!allowed.is_empty());
    for &id in tokenizer.special_ids() {
        assert!(logits[id as usize] == f32::NEG_INFINITY, "{id}");
    }
}

/// Whether an answer may be this text.
fn may_be(tokenizer: &Tokenizer, mut grammar: Grammar, text: &str) -> bool {
    let size = vocabulary_size(tokenizer);
    let ids = [tokenizer.encode(text, false).unwrap(), vec![2]].concat();
    ids.into_iter().all(|id| {
        let mut logits = vec![0.0; size];
        grammar.restrict(&mut logits).unwrap();
        let allowed = logits[id as usize] == 0.0;
        if allowed {
            grammar.accept(id).unwrap();
        }
        allowed
    })
}

#[test]
fn a_call_is_held_to_schemas_that_refer_to_parts_of_themselves() {
    let tokenizer = tokenizer();
    let grammars = Grammars::new(&tokenizer, vocabulary_size(&tokenizer), &[2]).unwrap();
    let object = |properties: Value| {
        json!({ "type": "object", "additionalProperties": false,
            "required": properties.as_object().unwrap().keys().collect::<Vec<_>>(),
            "properties": properties })
    };
    // The second of two functions, so that its schema is moved there.
    let called = |parameters: Value| {
        let functions =
            [json!({ "name": "now" }), json!({ "name": "f", "parameters": parameters })];
        let tools = Tools::new(functions.to_vec()).unwrap();
        grammars.json_schema(&tools.call_schema(None)).unwrap()
    };
    let holds = |parameters: Value, taken: &[&str], refused: &[&str]| {
        let grammar = called(parameters);
        let may_be = |arguments: &&str| {
            let text = format!(r#"{{"name":"f","arguments":{arguments}}}"#);
            may_be(&tokenizer, grammar.clone(), &text)
        };
        for arguments in taken {
            assert!(may_be(arguments), "{arguments}");
        }
        for arguments in refused {
            assert!(!may_be(arguments), "{arguments}");
        }
    };
    let mut order = object(json!({ "to": { "$ref": "#/$defs/Place" } }));
    let place = object(json!({ "city": { "$ref": "#/$defs/City" } }));
    order["$defs"] = json!({ "Place": place, "City": { "enum": ["Oslo", "Rome"] } });
    holds(
        order,
        &[r#"{"to":{"city":"Oslo"}}"#],
        &[r#"{"to":{"city":"Bonn"}}"#, r#"{"to":"Oslo"}"#],
    );

    let list = object(json!({ "next": { "anyOf": [{ "$ref": "#" }, { "type": "null" }] } }));
    let (shorter, longer) = (r#"{"next":null}"#, r#"{"next":{"next":{"next":null}}}"#);
    holds(list, &[shorter, longer], &[r#"{"next":{"name":"now","arguments":{}}}"#, "{}"]);

    // A value that looks like a reference is a value, and a property may have any name.
    let value = json!({ "const": { "$ref": "#" } });
    let mut named = object(json!({ "enum": { "$ref": "#/$defs/flag" }, "same": value }));
    named["$defs"] = json!({ "flag": { "type": "boolean" } });
    holds(
        named,
        &[r##"{"enum":true,"same":{"$ref":"#"}}"##],
        &[r##"{"enum":1,"same":{"$ref":"#"}}"##],
    );

    let mut document = object(json!({ "flag": { "$ref": "#/$defs/flag" } }));
    document["$id"] = json!("https://example.org/document");
    document["$defs"] = json!({ "flag": { "type": "boolean" } });
    holds(document, &[r#"{"flag":true}"#], &[r#"{"flag":1}"#]);
}
