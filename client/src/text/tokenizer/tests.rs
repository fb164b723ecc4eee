//! Tiny vocabularies, against what other implementations make of texts with them.
//!
//! The expected ids come from `tests/fixtures/tokenizers/make_fixtures.py`.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde::Deserialize;
use umbel_shard::GgufTokenizer;

use super::*;

#[derive(Deserialize)]
struct Vocabulary {
    tokens: Vec<String>,
    token_types: Vec<i32>,
    #[serde(default)]
    merges: Vec<String>,
    #[serde(default)]
    scores: Vec<f32>,
    #[serde(flatten)]
    cases: std::collections::BTreeMap<String, Vec<Case>>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: Option<String>,
}

fn byte_level_vocabulary() -> Vocabulary {
    serde_json::from_str(include_str!("../../../../tests/fixtures/tokenizers/byte_level.json"))
        .unwrap()
}

fn sentencepiece_vocabulary() -> Vocabulary {
    serde_json::from_str(include_str!("../../../../tests/fixtures/tokenizers/sentencepiece.json"))
        .unwrap()
}

impl Vocabulary {
    fn metadata(&self, model: &str, pre: &str) -> GgufTokenizer {
        GgufTokenizer {
            model: model.to_owned(),
            pre: Some(pre.to_owned()),
            tokens: self.tokens.clone(),
            scores: self.scores.clone(),
            token_types: self.token_types.clone(),
            merges: self.merges.clone(),
            bos_id: Some(1),
            eos_id: Some(2),
            unknown_id: Some(0),
            ..GgufTokenizer::default()
        }
    }
}

fn load(metadata: GgufTokenizer) -> Tokenizer {
    Tokenizer::load(&TokenizerSource::Gguf(Box::new(metadata))).unwrap()
}

fn refused(metadata: GgufTokenizer) -> String {
    Tokenizer::load(&TokenizerSource::Gguf(Box::new(metadata))).unwrap_err().to_string()
}

fn byte_level() -> Tokenizer {
    load(byte_level_vocabulary().metadata("gpt2", "smollm"))
}

fn sentencepiece() -> Tokenizer {
    load(sentencepiece_vocabulary().metadata("llama", "default"))
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    read(tokenizer.stream(), ids)
}

fn read(mut stream: TextStream, ids: &[u32]) -> String {
    let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
    text.push_str(&stream.finish());
    text
}

#[test]
fn each_pre_tokenizer_splits_as_the_models_that_have_it() {
    let vocabulary = byte_level_vocabulary();
    assert_eq!(vocabulary.cases.len(), 5);
    for (pre, cases) in &vocabulary.cases {
        let tokenizer = load(vocabulary.metadata("gpt2", pre));
        for case in cases {
            let ids = tokenizer.encode(&case.text, false).unwrap();
            assert_eq!(ids, case.ids, "{pre}: {:?}", case.text);
            // Only Qwen's composes characters, so only there the text may change.
            if pre != "qwen2" {
                assert_eq!(tokenizer.decode(&ids).unwrap(), case.text, "{pre}");
            }
        }
    }
}

#[test]
fn other_names_mean_the_same_pre_tokenizer() {
    let vocabulary = byte_level_vocabulary();
    let encode = |metadata: GgufTokenizer| {
        load(metadata).encode("  2 TwoThings don't\n\n x", false).unwrap()
    };
    let named = |pre: &str| encode(vocabulary.metadata("gpt2", pre));
    assert_eq!(named("default"), named("gpt-2"));
    for other in ["llama3", "llama-v3", "falcon3", "pixtral"] {
        assert_eq!(named(other), named("llama-bpe"), "{other}");
    }
    assert_eq!(named("deepseek-r1-qwen"), named("qwen2"));
    let silent = GgufTokenizer { pre: None, ..vocabulary.metadata("gpt2", "") };
    assert_eq!(encode(silent), named("gpt-2"));
}

#[test]
fn the_model_tells_how_text_is_split_where_its_file_does_not() {
    let vocabulary = byte_level_vocabulary();
    let encode = |metadata: GgufTokenizer| {
        load(metadata).encode_prompt("  2000 TwoThings don't e\u{301}\n\n x").unwrap()
    };
    let named = |pre: &str| encode(vocabulary.metadata("gpt2", pre));
    assert!(named("gpt-2") != named("qwen2") && named("qwen2") != named("llama-bpe"));
    let silent = |architecture: &str| GgufTokenizer {
        pre: None,
        architecture: Some(architecture.to_owned()),
        ..vocabulary.metadata("gpt2", "")
    };
    assert_eq!(encode(silent("qwen2")), named("qwen2"));
    assert_eq!(encode(silent("qwen3")), named("qwen2"));
    assert_eq!(encode(silent("qwen3moe")), named("qwen2"));
    assert_eq!(encode(silent("llama")), named("gpt-2"), "it may be any of many models");
    let mut llama3 = silent("llama");
    llama3.tokens[0] = "<|begin_of_text|>".to_owned();
    assert_eq!(encode(llama3), named("llama-bpe"));
    let said = GgufTokenizer { pre: Some("gpt-2".to_owned()), ..silent("qwen2") };
    assert_eq!(encode(said), named("gpt-2"));
}

#[test]
fn sentencepiece_encodes_as_the_library_itself() {
    let tokenizer = sentencepiece();
    let cases = &sentencepiece_vocabulary().cases["cases"];
    assert!(cases.len() > 10);
    for case in cases {
        let ids = tokenizer.encode(&case.text, false).unwrap();
        assert_eq!(ids, case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&ids).unwrap(), *case.decoded.as_ref().unwrap());
    }
}

#[test]
fn special_tokens_are_matched_in_a_text_and_written_out() {
    let tokenizer = byte_level();
    let text = "<|im_start|>user\nhi<|im_end|><think>";
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!((ids[0], ids[ids.len() - 2]), (1, 2));
    assert_eq!(ids.last().copied(), tokenizer.id("<think>"));
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert_eq!(tokenizer.special_ids().iter().copied().collect::<Vec<_>>(), [0, 1, 2]);

    let tokenizer = sentencepiece();
    let ids = tokenizer.encode("<s>one</s>two", false).unwrap();
    assert_eq!(ids[0], 1);
    let end = ids.iter().position(|&id| id == 2).unwrap();
    // Each stretch of text gets its space, and only the first of all is taken away again.
    assert_eq!(tokenizer.decode(&ids[..end]).unwrap(), "<s> one");
    assert_eq!(tokenizer.decode(&ids[end + 1..]).unwrap(), "two");
}

#[test]
fn a_prompt_gets_the_tokens_that_the_model_wants_around_it() {
    let around = |metadata: GgufTokenizer| {
        let tokenizer = load(metadata);
        let (plain, prompt) = (tokenizer.encode("x", false), tokenizer.encode_prompt("x"));
        let (plain, prompt) = (plain.unwrap(), prompt.unwrap());
        let at = prompt.windows(plain.len()).position(|window| window == plain).unwrap();
        (prompt[..at].to_vec(), prompt[at + plain.len()..].to_vec())
    };
    let (begin, end, nothing) = (vec![1], vec![2], Vec::<u32>::new());
    let gpt2 = |pre| byte_level_vocabulary().metadata("gpt2", pre);
    let llama = || sentencepiece_vocabulary().metadata("llama", "default");
    assert_eq!(around(gpt2("smollm")), (nothing.clone(), nothing.clone()));
    assert_eq!(around(gpt2("llama-bpe")), (begin.clone(), nothing.clone()));
    assert_eq!(around(llama()), (begin.clone(), nothing.clone()));
    let told = GgufTokenizer { add_bos: Some(true), add_eos: Some(true), ..gpt2("smollm") };
    assert_eq!(around(told), (begin, end));
    let told = GgufTokenizer { add_bos: Some(false), ..llama() };
    assert_eq!(around(told), (nothing.clone(), nothing));
}

#[test]
fn a_conversation_begins_with_the_token_that_a_gguf_file_asks_for_once() {
    let llama = || sentencepiece_vocabulary().metadata("llama", "default");
    let chat = |metadata: GgufTokenizer, text: &str| load(metadata).encode_chat(text).unwrap();
    let begun = sentencepiece().encode_prompt("one").unwrap();
    assert_eq!((chat(llama(), "one"), chat(llama(), "<s>one")), (begun.clone(), begun.clone()));
    let told = |add_bos| GgufTokenizer { add_bos: Some(add_bos), ..llama() };
    assert_eq!(
        (chat(told(false), "one"), chat(told(false), "<s>one")),
        (begun[1..].to_vec(), begun)
    );
    assert_eq!(chat(told(true), ""), [1]);
    let ended = GgufTokenizer { add_eos: Some(true), ..llama() };
    assert_eq!(chat(ended, "one").last(), chat(llama(), "one").last());
}

#[test]
fn a_text_behind_another_has_no_space_that_it_does_not_have() {
    for tokenizer in [byte_level(), sentencepiece()] {
        let cuts = [("one", " two"), ("one ", "two"), ("on", "e two"), ("\n", "two"), ("\n", "\n")];
        for (before, text) in cuts {
            let ids = tokenizer.encode_behind(before, text).unwrap();
            assert_eq!(read(tokenizer.continued_stream(), &ids), text, "behind {before:?}");
        }
    }
}

#[test]
fn tokens_that_end_an_answer_are_signs_whatever_a_file_calls_them() {
    let vocabulary = byte_level_vocabulary();
    for kind in [1, 4, 5] {
        let mut metadata = vocabulary.metadata("gpt2", "smollm");
        metadata.token_types[2] = kind;
        let tokenizer = load(metadata);
        assert!(tokenizer.special_ids().contains(&2), "{kind}");
        assert_eq!(tokenizer.encode("one<|im_end|>", false).unwrap().last(), Some(&2), "{kind}");
    }
    let untyped =
        GgufTokenizer { token_types: Vec::new(), ..vocabulary.metadata("gpt2", "smollm") };
    assert_eq!(load(untyped).special_ids().iter().copied().collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn what_fills_up_a_vocabulary_is_no_token() {
    let mut filled = byte_level_vocabulary().metadata("gpt2", "smollm");
    let end = u32::try_from(filled.tokens.len()).unwrap();
    for id in [end, end + 1] {
        filled.tokens.push(format!("[PAD{id}]"));
        filled.token_types.push(5);
    }
    let (tokenizer, filled) = (byte_level(), load(filled));
    assert_eq!(tokenizer.first_difference(&filled), None);
    assert_eq!(
        (filled.decode(&[end]).unwrap(), filled.bytes(end + 1)),
        (String::new(), Vec::new())
    );
}

#[test]
fn a_token_that_a_file_leaves_unused_is_written_by_its_parts() {
    for (vocabulary, model, pre) in [
        (byte_level_vocabulary(), "gpt2", "smollm"),
        (sentencepiece_vocabulary(), "llama", "default"),
    ] {
        let whole = load(vocabulary.metadata(model, pre));
        let ids = whole.encode("the server", false).unwrap();
        let longest = ids.iter().max_by_key(|&&id| vocabulary.tokens[id as usize].len()).unwrap();
        let mut without = vocabulary.metadata(model, pre);
        without.token_types[*longest as usize] = 5;
        let without = load(without);
        let parts = without.encode("the server", false).unwrap();
        assert!(parts.len() > ids.len() && !parts.contains(longest), "{model}: {parts:?}");
        assert_eq!(without.decode(&parts).unwrap(), whole.decode(&ids).unwrap());
    }
}

#[test]
fn a_file_can_ask_for_no_space_before_a_text() {
    let vocabulary = sentencepiece_vocabulary();
    let metadata = vocabulary.metadata("llama", "default");
    let tokenizer = load(GgufTokenizer { add_space_prefix: Some(false), ..metadata });
    let ids = tokenizer.encode("server", false).unwrap();
    assert!(!vocabulary.tokens[ids[0] as usize].starts_with('▁'));
    let spaced = tokenizer.encode(" server", false).unwrap();
    assert_eq!(spaced, sentencepiece().encode("server", false).unwrap());
    assert_eq!(tokenizer.decode(&spaced).unwrap(), " server");
}

#[test]
fn a_character_is_shown_once_it_is_complete() {
    let tokenizer = sentencepiece();
    let ids = tokenizer.encode("é😀", false).unwrap();
    let mut stream = tokenizer.stream();
    let shown: Vec<_> = ids.iter().map(|&id| stream.push(id)).filter(|s| !s.is_empty()).collect();
    assert_eq!(shown, ["é", "😀"]);
    assert_eq!(stream.finish(), "");

    // Cut within the second character.
    assert_eq!(streamed(&tokenizer, &ids[..ids.len() - 1]), "é\u{fffd}");
    assert_eq!(tokenizer.decode(&ids[..ids.len() - 1]).unwrap(), "é\u{fffd}");
}

#[test]
fn a_text_may_be_continued_behind_any_of_its_tokens() {
    for tokenizer in [byte_level(), sentencepiece()] {
        let ids = tokenizer.encode("one two", false).unwrap();
        for at in 1..ids.len() {
            let (before, behind) = ids.split_at(at);
            let begun = tokenizer.decode(before).unwrap();
            let text = format!("{begun}{}", read(tokenizer.continued_stream(), behind));
            assert_eq!(text, "one two", "behind {at} tokens");
        }
    }
}

#[test]
fn unknown_ids_have_no_text() {
    let tokenizer = byte_level();
    let mut ids = tokenizer.encode("one", false).unwrap();
    ids.insert(1, 1_000_000);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "one");
    assert_eq!(streamed(&tokenizer, &ids), "one");
}

#[test]
fn a_saved_tokenizer_json_gives_the_same_ids() {
    let folder = tempfile::tempdir().unwrap();
    for tokenizer in [byte_level(), sentencepiece()] {
        let path = folder.path().join("tokenizer.json");
        let mut pipeline = tokenizer.0.pipeline.clone();
        if let Decoding::SentencePiece { .. } = tokenizer.0.decoding {
            pipeline.with_decoder(Some(sentencepiece_decoder()));
        } else {
            let decoder = tokenizers::decoders::byte_level::ByteLevel::default();
            pipeline.with_decoder(Some(decoder));
        }
        pipeline.save(&path, false).unwrap();
        let loaded = load_json(&path, None).unwrap();
        assert!(!matches!(loaded.0.decoding, Decoding::Pipeline));
        for text in ["  A server, 12 ½ é😀\n", "<s>x</s> <|im_start|>y", ""] {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(loaded.encode(text, false).unwrap(), ids);
            assert_eq!(loaded.decode(&ids).unwrap(), tokenizer.decode(&ids).unwrap());
            // Where every byte is part of a character, ours is what the crate has.
            assert_eq!(loaded.decode(&ids).unwrap(), pipeline.decode(&ids, false).unwrap());
        }
        assert_eq!(loaded.special_ids(), tokenizer.special_ids());
    }
}

/// The decoder of Llama 2.
fn sentencepiece_decoder() -> tokenizers::DecoderWrapper {
    serde_json::from_str(
        r#"{"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}"#,
    )
    .unwrap()
}

fn load_json(path: &Path, config: Option<&Path>) -> Result<Tokenizer, LoadTokenizerError> {
    Tokenizer::load(&TokenizerSource::HuggingFace {
        tokenizer_json: path.to_owned(),
        config_json: config.map(Path::to_owned),
    })
}

#[test]
fn a_configuration_wins_over_the_tokens_around_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let (json, config) = (folder.path().join("t.json"), folder.path().join("c.json"));
    byte_level().0.pipeline.save(&json, false).unwrap();
    let plain = byte_level().encode("x", false).unwrap();
    let prompt = |text: &str| {
        fs::write(&config, text).unwrap();
        load_json(&json, Some(&config)).unwrap().encode_prompt("x").unwrap()
    };
    assert_eq!(prompt("{}"), plain);
    let both = r#"{"add_bos_token": true, "bos_token": {"content": "<|im_start|>"},
        "add_eos_token": true, "eos_token": "<|im_end|>"}"#;
    assert_eq!(prompt(both), [&[1], &plain[..], &[2]].concat());
    let unwanted = r#"{"add_bos_token": false, "bos_token": "<|im_start|>"}"#;
    assert_eq!(prompt(unwanted), plain);
}

#[test]
fn other_decoders_show_their_text_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let words = r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst",
            "stride": 0}, "padding": null,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "one": 1, "two": 2},
            "unk_token": "[UNK]"}}"#;
    fs::write(&path, words).unwrap();
    let tokenizer = load_json(&path, None).unwrap();
    let ids = tokenizer.encode("one two three", false).unwrap();
    assert_eq!(ids, [1, 2, 0], "what it cut for training is not cut here");
    let mut stream = tokenizer.stream();
    assert!(ids.iter().all(|&id| stream.push(id).is_empty()));
    assert_eq!(stream.finish(), "one two [UNK]");
}

#[test]
fn broken_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let error = load_json(&path, None).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json could not be read"), "{error}");
    // The last one has a merge that is longer than any token, at which the crate panics.
    let merge = r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {"ab": 0, "cd": 1},
        "merges": [["ab", "cd"]]}}"#;
    for text in ["", "{", "[]", "{}", r#"{"version": "1.0", "model": null}"#, merge] {
        fs::write(&path, text).unwrap();
        let error = load_json(&path, None).unwrap_err();
        assert!(error.to_string().contains("tokenizer.json"), "{text}: {error}");
    }
}

#[test]
fn metadata_that_makes_no_tokenizer_is_refused() {
    let gpt2 = || byte_level_vocabulary().metadata("gpt2", "smollm");
    let llama = || sentencepiece_vocabulary().metadata("llama", "default");
    let has = |metadata: GgufTokenizer, words: &str| {
        let message = refused(metadata);
        assert!(message.contains(words), "{message}");
    };
    has(GgufTokenizer { model: "bert".to_owned(), ..gpt2() }, "`bert`");
    has(GgufTokenizer { pre: Some("klingon".to_owned()), ..gpt2() }, "`klingon`");
    for merge in ["", "a", "a b c", "a \u{10000}", "<|im_start|> <|im_end|>", " a"] {
        let mut metadata = gpt2();
        metadata.merges.insert(1, merge.to_owned());
        has(metadata, "merge 1 ");
    }
    has(GgufTokenizer { add_bos: Some(true), bos_id: Some(9999), ..gpt2() }, "9999");
    has(GgufTokenizer { scores: vec![0.5], ..llama() }, "1 scores");
    has(GgufTokenizer { unknown_id: Some(9999), ..llama() }, "9999");
    let mut metadata = llama();
    metadata.tokens[300] = "x".repeat(100_000);
    has(metadata, "token 300 ");
}

#[test]
fn a_long_run_of_spaces_is_no_burden() {
    // Backtracking over the run must not give up and leave the rest unsplit.
    let spaces = " ".repeat(100_000);
    for pre in ["smollm", "llama-bpe"] {
        let tokenizer = load(byte_level_vocabulary().metadata("gpt2", pre));
        let ids = tokenizer.encode(&format!("{spaces}x y"), false).unwrap();
        let tail = tokenizer.encode(" x y", false).unwrap();
        assert!(ids.ends_with(&tail), "{pre}");
        assert_eq!(ids.len() - tail.len(), tokenizer.encode(&spaces[1..], false).unwrap().len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn texts_survive(text in any::<String>()) {
        let tokenizer = byte_level();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn a_stream_gives_what_all_tokens_give(ids in proptest::collection::vec(0u32..710, 0..60)) {
        for tokenizer in [byte_level(), sentencepiece()] {
            prop_assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids).unwrap());
        }
    }
}

#[test]
fn the_first_token_that_two_vocabularies_spell_differently_is_found() {
    let of = |tokens: &[String]| {
        let whole = byte_level_vocabulary();
        let mut token_types = whole.token_types.clone();
        token_types.resize(tokens.len(), 3);
        let vocabulary = Vocabulary { tokens: tokens.to_vec(), token_types, ..whole };
        load(vocabulary.metadata("gpt2", "smollm"))
    };
    let tokens = byte_level_vocabulary().tokens;
    let last = tokens.len() - 1;
    let mut other = tokens.clone();
    other[last] = "<|another|>".to_owned();
    let longer = [tokens.clone(), vec!["<|another|>".to_owned()]].concat();
    assert_eq!(of(&tokens).first_difference(&of(&tokens)), None);
    let id = u32::try_from(last).unwrap();
    let (ours, theirs) = (Some(tokens[last].clone()), Some(other[last].clone()));
    assert_eq!(of(&tokens).first_difference(&of(&other)), Some((id, ours, theirs.clone())));
    assert_eq!(of(&tokens).first_difference(&of(&longer)), Some((id + 1, None, theirs.clone())));
    assert_eq!(of(&longer).first_difference(&of(&tokens)), Some((id + 1, theirs, None)));
}
