//! What models are told, by templates that know functions and by others.

use serde_json::json;
use umbel_shard::SpecialTokens;

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
         </tool_call>\nuser: <tool_response>\nrain\n</tool_response>\nuser: Sure?\nassistant:"
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
    assert!(text.ends_with("</tool_response>\nuser: Sure?\nassistant: Yes: "), "{text}");
}
