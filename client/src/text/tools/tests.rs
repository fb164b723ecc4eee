//! Calls in the forms that models say them in, whole and piece by piece.

use proptest::prelude::*;
use serde_json::json;
use umbel_shard::SpecialTokens;

use super::*;
use crate::text::chat_template::ChatTemplate;
use crate::text::chat_template::tests::LLAMA2;

fn tools() -> Tools {
    let weather = json!({
        "name": "weather",
        "description": "The weather of a place",
        "parameters": { "type": "object", "properties": { "city": { "type": "string" } } },
    });
    Tools::new(vec![weather, json!({ "name": "now" })]).unwrap()
}

fn weather(city: &str) -> ToolCall {
    let arguments = [("city".to_owned(), json!(city))].into_iter().collect();
    ToolCall { id: None, name: "weather".to_owned(), arguments }
}

fn now() -> ToolCall {
    ToolCall { id: None, name: "now".to_owned(), arguments: Map::new() }
}

#[test]
fn calls_are_found_in_every_form() {
    let oslo = r#"{"name": "weather", "arguments": {"city": "Oslo"}}"#;
    let cases = [
        (format!("<tool_call>\n{oslo}\n</tool_call>"), "", vec![weather("Oslo")]),
        (
            format!(
                "I look.\n<tool_call>{oslo}</tool_call>\n<tool_call>{{\"name\": \"now\"}}</tool_call>"
            ),
            "I look.",
            vec![weather("Oslo"), now()],
        ),
        (format!("<tool_call>{oslo}"), "", vec![weather("Oslo")]),
        (format!("[TOOL_CALLS] [{oslo}, {oslo}]"), "", vec![weather("Oslo"), weather("Oslo")]),
        (
            r#" {"name": "weather", "parameters": {"city": "Rome"}}"#.to_owned(),
            "",
            vec![weather("Rome")],
        ),
        (
            r#"{"name": "weather", "arguments": "{\"city\": \"Rome\"}"}"#.to_owned(),
            "",
            vec![weather("Rome")],
        ),
        (format!("<|python_tag|>{oslo}"), "", vec![weather("Oslo")]),
        (
            format!("I look. <|python_tag|>{oslo}; {{\"name\": \"now\", \"parameters\": {{}}}};"),
            "I look.",
            vec![weather("Oslo"), now()],
        ),
        (format!("{oslo}\n{oslo}"), "", vec![weather("Oslo"), weather("Oslo")]),
    ];
    for (text, said, calls) in cases {
        assert_eq!(tools().parse(&text), (said.to_owned(), calls), "{text}");
    }
}

fn forecast() -> Tools {
    let properties = json!({
        "city": { "type": "string" },
        "days": { "type": "integer" },
        "hours": { "type": ["array", "null"], "items": { "type": "integer" } },
        "exact": { "anyOf": [{ "type": "boolean" }, { "type": "null" }] },
        "note": {},
    });
    let parameters = json!({ "type": "object", "properties": properties });
    let forecast = json!({ "name": "forecast", "parameters": parameters });
    Tools::new(vec![forecast, json!({ "name": "now" })]).unwrap()
}

/// As Qwen3-Coder and Llama's models say them.
#[test]
fn calls_in_tags_have_arguments_of_their_types() {
    let call = |arguments: Value| {
        let Value::Object(arguments) = arguments else { panic!("{arguments}") };
        ToolCall { id: None, name: "forecast".to_owned(), arguments }
    };
    let whole = "<tool_call>\n<function=forecast>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n\
                 </parameter>\n<parameter=hours>\n[6, 18]\n</parameter>\n<parameter=exact>\ntrue\n\
                 </parameter>\n<parameter=note>\n7\n</parameter>\n</function>\n</tool_call>";
    let all = json!({"city": "12", "days": 3, "hours": [6, 18], "exact": true, "note": "7"});
    let cases = [
        (whole.to_owned(), "", vec![call(all.clone())]),
        (format!("I look.\n{whole}\n{whole}"), "I look.", vec![call(all.clone()), call(all.clone())]),
        // Without the outer tag, and with several inside one.
        (whole.replace("<tool_call>\n", ""), "", vec![call(all.clone())]),
        (
            "<tool_call><function=now></function><function=now>\n</function></tool_call>".to_owned(),
            "",
            vec![now(), now()],
        ),
        // Lines and tags within a value are its own; one that is no number stays what was said.
        (
            "<function=forecast>\n<parameter=city>\n\na\n</function> b\n\n</parameter>\n<parameter=days>\n\
             some\n</parameter>"
                .to_owned(),
            "",
            vec![call(json!({"city": "\na\n</function> b\n", "days": "some"}))],
        ),
        // The end of one forgotten.
        (
            "<function=forecast><parameter=city>Oslo\n<parameter=days>2\n</function>".to_owned(),
            "",
            vec![call(json!({"city": "Oslo", "days": 2}))],
        ),
        (
            r#"<function=forecast>{"city": "Oslo", "days": 2}</function>"#.to_owned(),
            "",
            vec![call(json!({"city": "Oslo", "days": 2}))],
        ),
    ];
    for (text, said, calls) in cases {
        assert_eq!(forecast().parse(&text), (said.to_owned(), calls), "{text}");
    }
    for text in [
        "<function=launch></function>",
        "<function=now",
        "<function=now> at once",
        "<function=now></function> and more",
        r#"<function=forecast>{"city": </function>"#,
    ] {
        assert_eq!(forecast().parse(text), (text.to_owned(), Vec::new()));
    }
}

#[test]
fn what_is_no_call_is_said() {
    for text in [
        "It rains.",
        r#"{"name": "launch", "arguments": {}}"#,
        r#"{"name": "weather", "arguments": 5}"#,
        "<tool_call>\n{\"name\": \"weather\", \"argu",
        "{}",
        "[]",
        "[TOOL_CALLS] nothing",
        "<|python_tag|>print(1)",
        r#"{"name": "now"} is what I would ask for."#,
        r#"{"name": "now"}; {"name": "launch"}"#,
    ] {
        assert_eq!(tools().parse(text), (text.to_owned(), Vec::new()));
    }
}

#[test]
fn a_model_without_a_template_for_them_is_told() {
    let call = Message { calls: vec![weather("Oslo")], ..Message::assistant("") };
    let turns = [Message::user("Weather?"), call, Message::tool(None, "rain")];
    let told = Tools::as_text(Some(&tools()), &turns);
    assert_eq!(told.len(), 4);
    assert!(told[0].role == "system" && told[0].content.contains("The weather of a place"));
    assert_eq!(tools().parse(&told[2].content).1, [weather("Oslo")], "as it is to say them itself");
    assert_eq!(told[3], Message::user("<tool_response>\nrain\n</tool_response>"));
    let told =
        Tools::as_text(Some(&tools()), &[Message::system("Be brief."), Message::user("Weather?")]);
    assert!(told.len() == 2 && told[0].content.starts_with("Be brief.\n\n"));
}

#[test]
fn results_are_one_turn_with_what_the_user_says_behind_them() {
    let calls = Message { calls: vec![weather("Oslo"), now()], ..Message::assistant("") };
    let results = [Message::tool(None, "rain"), Message::tool(None, "noon")];
    let (asked, thanks) = (Message::user("Weather?"), Message::user("Thanks."));
    let turns = [&[asked, calls][..], &results, &[thanks.clone(), thanks.clone()]].concat();
    let told = Tools::as_text(None, &turns);
    let both = "<tool_response>\nrain\n</tool_response>\n<tool_response>\nnoon\n</tool_response>";
    assert_eq!(told[2], Message::user(format!("{both}\nThanks.")));
    assert_eq!(told[3..], [thanks], "what two turns of the user say was not asked for together");

    let [bos, eos] = ["<s>", "</s>"].map(|token| Some(token.to_owned()));
    let specials = SpecialTokens { bos, eos, ..SpecialTokens::default() };
    let strict = ChatTemplate::new(LLAMA2, &specials).unwrap();
    for end in [4, 5] {
        let text = strict.render(&Tools::as_text(None, &turns[..end]), true).unwrap();
        assert!(text.contains(both), "{text}");
    }
}

#[test]
fn functions_without_a_usable_name_are_refused() {
    for functions in [
        vec![json!({})],
        vec![json!({ "name": "" })],
        vec![json!({ "name": "a b" })],
        vec![json!({ "name": "a" }), json!({ "name": "a" })],
        (0..200).map(|index| json!({ "name": format!("f{index}") })).collect(),
    ] {
        assert!(Tools::new(functions).is_err());
    }
}

proptest! {
    /// What is shown piece by piece, and then the rest, is what is said outside of calls.
    #[test]
    fn pieces_show_what_the_whole_says(
        before in "[a-z<|\\[ ]{0,12}",
        call in prop::sample::select(vec![
            "",
            r#"<tool_call>{"name": "now"}</tool_call>"#,
            r#"[TOOL_CALLS] [{"name": "now"}]"#,
            r#"<|python_tag|>{"name": "now"}; {"name": "now"}"#,
        ]),
        cuts in prop::collection::vec(0usize..8, 1..60),
    ) {
        let text = format!("{before}{call}");
        let (said, calls) = tools().parse(&text);
        let (mut stream, mut shown, mut rest) = (CallStream::new(tools()), String::new(), &text[..]);
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            shown.push_str(&stream.push(piece));
            rest = after;
        }
        shown.push_str(&stream.push(rest));
        let (last, found) = stream.finish();
        shown.push_str(&last);
        prop_assert_eq!(&found, &calls);
        prop_assert_eq!(shown.trim_end(), said.trim_end());
    }
}
