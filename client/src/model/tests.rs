//! What models are told, by templates that know functions and by others.

use std::fs;
use std::path::Path;

use serde_json::json;
use umbel_protocol::Span;
use umbel_shard::gguf::write::{GgufWriter, WriteValue};
use umbel_shard::{Silent, SpecialTokens, Weights};

use super::*;
use crate::text::chat_template::ToolCall;

/// The roles that it knows, and no functions.
const PLAIN: &str = "{% for message in messages %}\
{% if message.role not in ['system', 'user', 'assistant'] %}\
{{ raise_exception('no ' + message.role) }}{% endif %}\
{{ message.role + ': ' + message.content + '\n' }}{% endfor %}\
{% if add_generation_prompt %}assistant:{% endif %}";

/// The same and functions.
const WITH_TOOLS: &str = "{% if tools %}{{ tools | length }} tools\n{% endif %}\
{% for message in messages %}{{ message.role + ': ' + message.content }}\
{% for call in message.tool_calls or [] %}{{ 'calls ' + call.function.name }}{% endfor %}\
{{ '\n' }}{% endfor %}";

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, &SpecialTokens::default()).unwrap()
}

fn alone(source: &str) -> Templates {
    Templates { plain: template(source), with_tools: None }
}

fn told_by(templates: &Templates, messages: &[Message], tools: Option<&Tools>) -> String {
    told(templates, messages, tools, &TemplateValues::default(), false).unwrap()
}

/// A conversation in which a function was called, and then its result told.
fn called() -> [Message; 4] {
    let arguments = [("city".to_owned(), json!("Oslo"))].into_iter().collect();
    let call = ToolCall { id: Some("a".to_owned()), name: "weather".to_owned(), arguments };
    [
        Message::user("Weather?"),
        Message { calls: vec![call], ..Message::assistant("") },
        Message::tool(Some("a".to_owned()), "rain"),
        Message::user("Sure?"),
    ]
}

#[test]
fn calls_are_told_also_where_no_functions_are_named_any_more() {
    let text = told_by(&alone(PLAIN), &called(), None);
    assert_eq!(
        text,
        "user: Weather?\nassistant: <tool_call>\n{\"name\":\"weather\",\"arguments\":{\"city\":\"Oslo\"}}\n\
         </tool_call>\nuser: <tool_response>\nrain\n</tool_response>\nSure?\nassistant:"
    );
    let text = told_by(&alone(WITH_TOOLS), &called(), None);
    assert_eq!(text, "user: Weather?\nassistant: calls weather\ntool: rain\nuser: Sure?\n");
}

#[test]
fn functions_are_told_by_the_template_or_in_the_turn_of_the_system() {
    let tools = Tools::new(vec![json!({ "name": "weather" })]).unwrap();
    let text = told_by(&alone(PLAIN), &called(), Some(&tools));
    assert!(text.starts_with("system: You can call these functions"), "{text}");
    let text = told_by(&alone(WITH_TOOLS), &called(), Some(&tools));
    assert!(text.starts_with("1 tools\nuser: "), "{text}");
}

#[test]
fn a_template_for_functions_is_for_conversations_that_have_some() {
    let templates = Templates { plain: template(PLAIN), with_tools: Some(template(WITH_TOOLS)) };
    let tools = Tools::new(vec![json!({ "name": "weather" })]).unwrap();
    let told = |tools| told_by(&templates, &called(), tools);
    assert!(told(Some(&tools)).starts_with("1 tools\nuser: "));
    assert!(told(None).starts_with("user: Weather?\nassistant: <tool_call>"));
}

#[test]
fn a_template_is_told_values_with_functions_and_without() {
    let source = format!("{{{{ mood }}}} {WITH_TOOLS}");
    let values = json!({ "mood": "good" }).as_object().unwrap().clone();
    let values = TemplateValues::from_json(values).unwrap();
    let tools = Tools::new(vec![json!({ "name": "weather" })]).unwrap();
    for tools in [None, Some(&tools)] {
        let text = told(&alone(&source), &called(), tools, &values, false).unwrap();
        assert!(text.starts_with("good "), "{text}");
    }
}

#[test]
fn an_answer_goes_on_where_it_was_begun() {
    let begun = [&called()[..], &[Message::assistant("Yes: ")]].concat();
    let text = told(&alone(PLAIN), &begun, None, &TemplateValues::default(), true).unwrap();
    assert!(text.ends_with("</tool_response>\nSure?\nassistant: Yes: "), "{text}");
}

/// A GGUF file of a tiny Llama whose tokenizer knows bytes, with a chat template.
fn gguf(template: &str, add_bos: Option<bool>) -> ClientModel {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let original =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama");
    let source = ModelSource::parse(original.to_str().unwrap()).unwrap();
    let original = Model::open(&source, &cache, PartsNeeded::everything(), &Silent).unwrap();
    let span = Span::new(0, original.config().block_count).unwrap();
    let parts = [Part::Embedding, Part::Blocks(span), Part::Head];
    let weights = parts.map(|part| original.weights(part).unwrap());
    let weights = weights.into_iter().fold(Weights::default(), Weights::and);
    let mut writer = GgufWriter::of_model(original.config(), &weights).unwrap();
    let signs = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let size = original.config().vocabulary_size;
    let tokens: Vec<_> =
        signs.chain(bytes).chain((259..size).map(|id| format!("word {id}"))).collect();
    let kinds = [2, 3, 3].into_iter().chain([6; 256]).chain(std::iter::repeat(1)).take(size);
    writer
        .value("tokenizer.ggml.model", "llama")
        .value("tokenizer.ggml.tokens", WriteValue::Texts(tokens))
        .value("tokenizer.ggml.token_type", WriteValue::I32s(kinds.collect()))
        .value("tokenizer.ggml.scores", WriteValue::F32s(vec![0.0; size]))
        .value("tokenizer.chat_template", template);
    if let Some(add_bos) = add_bos {
        writer.value("tokenizer.ggml.add_bos_token", WriteValue::Flag(add_bos));
    }
    let path = folder.path().join("model.gguf");
    fs::write(&path, writer.to_bytes()).unwrap();
    ClientModel::open_thin(&ModelSource::GgufFile(path), &cache, &Silent).unwrap()
}

#[test]
fn a_conversation_begins_as_a_gguf_file_asks_for_whatever_its_template_writes() {
    let without = "{% for message in messages %}{{ message.content }}{% endfor %}";
    let with = format!("{{{{ bos_token }}}}{without}");
    for (template, add_bos, begins) in [
        (without, None, true),
        (with.as_str(), None, true),
        (without, Some(false), false),
        (with.as_str(), Some(false), true),
    ] {
        let model = gguf(template, add_bos);
        let begin: &[u32] = if begins { &[1] } else { &[] };
        let said = model.tokenizer().unwrap().encode("hi", false).unwrap();
        let ids = model.encode_chat(&[Message::user("hi")]).unwrap();
        assert_eq!(ids, [begin, &said].concat(), "{template} {add_bos:?}");
    }
}
