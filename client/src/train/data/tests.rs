//! Lines of each kind, broken ones, and the order of texts.

use std::collections::BTreeSet;
use std::fs;

use serde::Deserialize;
use umbel_shard::{GgufTokenizer, SpecialTokens, TokenizerSource};

use super::*;
use crate::text::chat_template::ChatTemplate;
use crate::text::chat_template::tests::{MISTRAL, QWEN3};
use crate::text::tokenizer::Tokenizer;

const END: u32 = 9;

/// Words of a tiny vocabulary; `b` begins every prompt.
fn tokenizer() -> Tokenizer {
    let words = ["?", "b", "one", "two", "three", "u:", "a:", "s:"];
    let vocabulary: serde_json::Map<_, _> = words
        .iter()
        .zip(0..)
        .map(|(word, id)| ((*word).to_owned(), serde_json::json!(id)))
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "b", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"b": {"id": "b", "ids": [1], "tokens": ["b"]}},
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    });
    let folder = tempfile::tempdir().unwrap();
    let tokenizer_json = folder.path().join("tokenizer.json");
    fs::write(&tokenizer_json, json.to_string()).unwrap();
    Tokenizer::load(&TokenizerSource::HuggingFace { tokenizer_json, config_json: None }).unwrap()
}

/// A tokenizer of a model's kind, as a GGUF file has it.
fn gguf_tokenizer(model: &str, vocabulary: &str) -> Tokenizer {
    #[derive(Deserialize)]
    struct Vocabulary {
        tokens: Vec<String>,
        token_types: Vec<i32>,
        #[serde(default)]
        merges: Vec<String>,
        #[serde(default)]
        scores: Vec<f32>,
    }
    let Vocabulary { tokens, token_types, merges, scores } =
        serde_json::from_str(vocabulary).unwrap();
    let model = model.to_owned();
    let (bos_id, eos_id, unknown_id) = (Some(1), Some(2), Some(0));
    let metadata =
        GgufTokenizer { model, tokens, token_types, merges, scores, ..Default::default() };
    let metadata = GgufTokenizer { bos_id, eos_id, unknown_id, ..metadata };
    Tokenizer::load(&TokenizerSource::Gguf(Box::new(metadata))).unwrap()
}

fn sentencepiece() -> Tokenizer {
    let vocabulary = include_str!("../../../../tests/fixtures/tokenizers/sentencepiece.json");
    gguf_tokenizer("llama", vocabulary)
}

fn byte_level() -> Tokenizer {
    let vocabulary = include_str!("../../../../tests/fixtures/tokenizers/byte_level.json");
    gguf_tokenizer("gpt2", vocabulary)
}

fn template(source: &str) -> ChatTemplate {
    let [bos, eos] = ["<s>", "</s>"].map(|token| Some(token.to_owned()));
    ChatTemplate::new(source, &SpecialTokens { bos, eos, ..SpecialTokens::default() }).unwrap()
}

const CHAT: &str = "{% for m in messages %}{{ m['role'][:1] + ': ' + m['content'] + ' ' }}\
{% endfor %}{% if add_generation_prompt %}{{ 'a: ' }}{% endif %}";

/// No token of its own stands before an answer, as in the templates of Llama 2 and Mistral.
const SPACED: &str = "{% for m in messages %}{% if m.role == 'user' %}\
{{ m.content + ':' }}{% else %}{{ ' ' + m.content + '</s>' }}{% if not loop.last %}{{ ' ' }}\
{% endif %}{% endif %}{% endfor %}";

const TWO_ANSWERS: &str = r#"{"messages": [
    {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"}, {"role": "assistant", "content": "four"}
]}"#;

/// A model without tokenizer and template.
fn bare() -> TextReader<'static> {
    TextReader { tokenizer: None, chat_template: None, end: Some(END), vocabulary_size: 40 }
}

fn parse(line: &str) -> Result<Example, LineError> {
    let (tokenizer, template) = (tokenizer(), template(CHAT));
    let reader =
        TextReader { tokenizer: Some(&tokenizer), chat_template: Some(&template), ..bare() };
    let mut texts = reader.parse(line.as_bytes(), usize::MAX)?;
    assert_eq!(texts.len(), 1, "{line}");
    Ok(texts.remove(0))
}

fn learned(line: &str) -> (Vec<u32>, Vec<Option<u32>>) {
    let example = parse(line).unwrap();
    assert_eq!(example.inputs().len(), example.targets().count());
    (example.inputs().to_vec(), example.targets().collect())
}

/// A conversation of one message with these fields.
fn turn(fields: &str) -> String {
    format!(r#"{{"messages": [{{"content": "one", {fields}}}]}}"#)
}

#[test]
fn a_completion_is_learned_and_that_it_ends_and_not_its_prompt() {
    let (inputs, targets) = learned(r#"{"prompt": "one", "completion": "two three"}"#);
    assert_eq!(inputs, [1, 2, 3, 4]);
    assert_eq!(targets, [None, Some(3), Some(4), Some(END)]);
}

#[test]
fn of_a_text_everything_is_learned() {
    let (inputs, targets) = learned(r#"{"text": "one two"}"#);
    assert_eq!((inputs, targets), (vec![1, 2, 3], vec![Some(2), Some(3), Some(END)]));
    let (inputs, targets) = learned(r#"{"token_ids": [7, 8]}"#);
    assert_eq!((inputs, targets), (vec![7], vec![Some(8)]));
}

#[test]
fn of_a_conversation_the_answers_are_learned() {
    let (inputs, targets) = learned(
        r#"{"messages": [
            {"role": "system", "content": "one"}, {"role": "user", "content": "two"},
            {"role": "assistant", "content": "three"}, {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two three"}
        ]}"#,
    );
    assert_eq!(inputs, [7, 2, 5, 3, 6, 4, 5, 2, 6, 3]);
    let expected = [None, None, None, None, Some(4), None, None, None, Some(3), Some(4)];
    assert_eq!(targets, expected);
}

#[test]
fn of_a_conversation_what_has_a_weight_of_0_is_read_and_not_learned() {
    let (inputs, targets) = learned(
        r#"{"messages": [
            {"role": "user", "content": "two", "weight": 0},
            {"role": "assistant", "content": "three", "weight": 0},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two", "weight": 1}
        ]}"#,
    );
    assert_eq!(inputs, [5, 3, 6, 4, 5, 2, 6]);
    assert_eq!(targets, [None, None, None, None, None, None, Some(3)]);
}

#[test]
fn lines_that_make_no_text_say_why() {
    for (line, part) in [
        ("{", "EOF while parsing an object at column 1"),
        (r#"{"text": 1}"#, "invalid type"),
        (r#"{"token_ids": [1, -2]}"#, "invalid value"),
        (r#"{"token_ids": [1, 40]}"#, "token 40 is not in the model's vocabulary of 40"),
        (r#"{"prompt": "one"}"#, "prompt and completion"),
        (r#"{"text": "one", "token_ids": [1]}"#, "prompt and completion"),
        (r#"{"messages": [{"role": "user", "content": "one"}]}"#, "assistant"),
        (r#"{"messages": [], "tools": []}"#, "unknown field `tools`"),
        (r#"{"messages": [], "parallel_tool_calls": true}"#, "unknown field `parallel_tool_calls`"),
        (&turn(r#""role": "user", "name": "ann""#), "unknown field `name`"),
        (&turn(r#""role": "assistant", "weight": 2"#), "a weight is 0 or 1, and not 2"),
        (&turn(r#""role": "assistant", "weight": 0.5"#), "a weight is 0 or 1, and not 0.5"),
        (&turn(r#""role": "user", "weight": 1"#), "role user has a weight of 1"),
    ] {
        let error = parse(line).unwrap_err().to_string();
        assert!(error.contains(part), "{line}: {error}");
    }
    let bare = bare();
    let refused = |line: &[u8]| bare.parse(line, 8).unwrap_err();
    assert!(matches!(refused(br#"{"text": "a"}"#), LineError::NoTokenizer));
    assert!(matches!(refused(br#"{"messages": []}"#), LineError::NoChatTemplate));
}

#[test]
fn a_completion_has_the_tokens_that_it_has_in_the_whole_text() {
    let tokenizer = sentencepiece();
    let reader = TextReader { tokenizer: Some(&tokenizer), ..bare() };
    let parts = |prompt: &str, completion: &str| {
        let line = serde_json::json!({ "prompt": prompt, "completion": completion }).to_string();
        let texts = reader.parse(line.as_bytes(), usize::MAX).unwrap();
        let learned: Vec<u32> = texts[0].targets().flatten().collect();
        let context = &texts[0].ids[..texts[0].ids.len() - learned.len()];
        assert_eq!(context, tokenizer.encode_prompt(prompt).unwrap(), "{prompt}");
        (texts[0].ids.clone(), learned)
    };
    let whole = |text: &str| [tokenizer.encode_prompt(text).unwrap(), vec![END]].concat();
    assert_eq!(parts("one", " two").0, whole("one two"));
    assert_eq!(parts("<s>one", " two</s>").0, whole("<s>one two</s>"));
    // In the whole text one token reaches across the place where the prompt ends.
    for (prompt, completion) in [("one ", "two"), ("on", "e two")] {
        let (_, learned) = parts(prompt, completion);
        let (&end, said) = learned.split_last().unwrap();
        let mut stream = tokenizer.continued_stream();
        let text: String = said.iter().map(|&id| stream.push(id)).collect();
        assert_eq!((text.as_str(), end), (completion, END), "{prompt}");
    }
}

#[test]
fn an_answer_has_the_tokens_that_it_has_in_the_whole_conversation() {
    let (tokenizer, template) = (sentencepiece(), template(SPACED));
    let reader =
        TextReader { tokenizer: Some(&tokenizer), chat_template: Some(&template), ..bare() };
    let texts = reader.parse(TWO_ANSWERS.as_bytes(), usize::MAX).unwrap();
    let whole = tokenizer.encode_prompt("one: two</s> three: four</s>").unwrap();
    assert_eq!((texts.len(), &texts[0].ids), (1, &whole), "it begins as every text does");
    let learned: Vec<u32> = texts[0].targets().flatten().collect();
    assert_eq!(tokenizer.decode(&learned).unwrap(), "two</s> four</s>");
}

/// Says what stands before an answer and what is learned of each text of a conversation.
fn told(source: &str, line: &str) -> Vec<(String, String)> {
    let (tokenizer, template) = (byte_level(), template(source));
    let reader =
        TextReader { tokenizer: Some(&tokenizer), chat_template: Some(&template), ..bare() };
    let texts = reader.parse(line.as_bytes(), usize::MAX).unwrap();
    let texts = texts.iter().map(|text| {
        let learned: Vec<u32> = text.targets().flatten().collect();
        let context = &text.ids[..text.ids.len() - learned.len()];
        (tokenizer.decode(context).unwrap(), tokenizer.decode(&learned).unwrap())
    });
    texts.collect()
}

#[test]
fn where_a_template_forgets_thoughts_each_answer_is_a_text() {
    let asked = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n";
    let first = "<think>\n\n</think>\n\ntwo<|im_end|>\n";
    let later =
        format!("{asked}two<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n");
    let second = "<think>\n\n</think>\n\nfour<|im_end|>\n";
    let texts = told(QWEN3, TWO_ANSWERS);
    let expected = [(asked, first), (later.as_str(), second)];
    let expected = expected.map(|(asked, answer)| (asked.to_owned(), answer.to_owned()));
    assert_eq!(texts, expected);
    let of_context = TWO_ANSWERS.replace(r#""two""#, r#""two", "weight": 0"#);
    assert_eq!(told(QWEN3, &of_context), expected[1..]);
}

#[test]
fn where_a_template_moves_what_the_system_says_each_answer_is_a_text() {
    // Without the number behind all turns, which no model's template has.
    let (mistral, _) = MISTRAL.rsplit_once('\n').unwrap();
    let system = r#"{"messages": [{"role": "system", "content": "Be brief."}, "#;
    let told = |line: &str| told(mistral, line);
    let expected = [
        ("<s>[INST] Be brief.\n\none[/INST]", " two</s>"),
        ("<s>[INST] one[/INST] two</s>[INST] Be brief.\n\nthree[/INST]", " four</s>"),
    ];
    let expected = expected.map(|(asked, answer)| (asked.to_owned(), answer.to_owned()));
    assert_eq!(told(&TWO_ANSWERS.replace(r#"{"messages": ["#, system)), expected);
    assert_eq!(told(TWO_ANSWERS).len(), 1, "nothing is moved where the system says nothing");
}

#[test]
fn the_answers_of_a_conversation_are_all_learned_or_none_is() {
    let (tokenizer, template) = (byte_level(), template(QWEN3));
    let reader =
        TextReader { tokenizer: Some(&tokenizer), chat_template: Some(&template), ..bare() };
    let line = TWO_ANSWERS.replace('\n', "");
    let lines = ["one", "two", "three", "four"].map(|first| line.replace("one", first) + "\n");
    for seed in 0..10 {
        let data = read_by(&reader, &lines.concat(), usize::MAX).unwrap();
        assert_eq!(data.examples.len(), 8);
        let begins = |texts: &[Example]| -> BTreeSet<Vec<u32>> {
            texts.iter().map(|text| text.ids[..6].to_vec()).collect()
        };
        let (learned, validation) = data.split(0.3, seed);
        assert_eq!((learned.len(), validation.len()), (6, 2));
        assert!(begins(&learned).is_disjoint(&begins(&validation)), "seed {seed}");
    }
}

#[test]
fn answers_for_which_there_is_no_room_are_counted() {
    let (tokenizer, template) = (byte_level(), template(QWEN3));
    let reader =
        TextReader { tokenizer: Some(&tokenizer), chat_template: Some(&template), ..bare() };
    let turns = r#"{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}"#;
    let line = format!("{{\"messages\": [{turns}, {turns}, {turns}]}}\n");
    let texts = reader.parse(line.as_bytes(), usize::MAX).unwrap();
    assert_eq!(texts.len(), 3);
    let unlearned = line.replace(r#""two""#, r#""two", "weight": 0"#);
    let data = read_by(&reader, &[line, unlearned].concat(), texts[0].ids.len()).unwrap();
    assert_eq!((data.examples, data.left_out), (vec![texts[0].clone()], 3));
}

#[test]
fn a_template_that_does_not_show_where_an_answer_begins_is_refused() {
    let forgetful =
        template("{{ messages[-1]['content'] }}{% if add_generation_prompt %}a: {% endif %}");
    let tokenizer = tokenizer();
    let reader =
        TextReader { tokenizer: Some(&tokenizer), chat_template: Some(&forgetful), ..bare() };
    assert!(matches!(reader.parse(TWO_ANSWERS.as_bytes(), 8), Err(LineError::Template)));
}

fn read(text: &str, tokens_max: usize) -> Result<DataSet, DataError> {
    read_by(&bare(), text, tokens_max)
}

fn read_by(reader: &TextReader<'_>, text: &str, tokens_max: usize) -> Result<DataSet, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    fs::write(&path, text).unwrap();
    DataSet::read(&path, reader, tokens_max)
}

#[test]
fn broken_lines_are_named() {
    let error = read("{\"token_ids\": [1, 2]}\n\n{\nnothing\n", 8).unwrap_err().to_string();
    assert!(error.contains("2 broken lines: line 3: "), "{error}");
    assert!(error.contains("; line 4: "), "{error}");
    assert!(!error.contains("line 1"), "the file's lines and no others: {error}");
    let many = "x\n".repeat(40);
    let error = read(&many, 8).unwrap_err().to_string();
    assert!(error.contains("40 broken") && !error.contains("line 6"), "{error}");
    assert!(matches!(read("", 8), Err(DataError::Empty { .. })));
    assert!(matches!(read("{\"token_ids\": [1]}", 8), Err(DataError::Empty { .. })));
}

#[test]
fn long_texts_are_cut() {
    let data = read("{\"token_ids\": [1, 2, 3, 4]}\n{\"token_ids\": [5]}\n", 3).unwrap();
    assert_eq!((data.cut, data.left_out, data.examples.len()), (1, 1, 1));
    assert_eq!(data.examples[0].inputs(), [1, 2]);
}

#[test]
fn a_split_takes_its_share_and_is_that_of_its_seed() {
    let lines: String = (0..20).map(|id| format!("{{\"token_ids\": [{id}, 1]}}\n")).collect();
    let data = read(&lines, 8).unwrap();
    let (learned, validation) = data.clone().split(0.1, 4);
    assert_eq!((learned.len(), validation.len()), (18, 2));
    assert_eq!(data.clone().split(0.1, 4), (learned.clone(), validation.clone()));
    assert_ne!(data.clone().split(0.1, 5).1, validation);
    let mut all: Vec<_> = learned.iter().chain(&validation).map(|text| text.inputs()[0]).collect();
    all.sort_unstable();
    assert_eq!(all, (0..20).collect::<Vec<_>>());
    assert_eq!(data.clone().split(0.0, 4).1.len(), 0);
    assert_eq!(data.clone().split(0.001, 4).1.len(), 1);
    assert_eq!(data.split(1.0, 4).0.len(), 1, "something is left to learn");
}
