//! Templates in the constructs that models have, against what transformers makes of them.
//!
//! The expected texts are those of `render_jinja_template` of transformers 5.23.

use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn specials() -> SpecialTokens {
    SpecialTokens {
        bos: Some("<s>".to_owned()),
        eos: Some("</s>".to_owned()),
        ..SpecialTokens::default()
    }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, &specials()).unwrap()
}

fn render(source: &str, messages: &[Message]) -> Result<String, RenderChatError> {
    template(source).render(messages, true)
}

fn conversation() -> [Message; 4] {
    [
        Message::system("Be brief."),
        Message::user("One & two?"),
        Message::assistant(" Three. "),
        Message::user("Übermorgen?\n"),
    ]
}

/// Of SmolLM2-135M-Instruct, as its GGUF file has it.
const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != \
'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + \
'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
{% endif %}";

#[test]
fn smollm2_gets_its_system_prompt_from_its_template() {
    let rendered = render(SMOLLM2, &[Message::user("What is gravity? Answer in one sentence.")]);
    assert_eq!(
        rendered.unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
         Face<|im_end|>\n<|im_start|>user\nWhat is gravity? Answer in one sentence.<|im_end|>\n\
         <|im_start|>assistant\n"
    );
    let without_prompt = template(SMOLLM2).render(&conversation()[..2], false).unwrap();
    assert_eq!(
        without_prompt,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne & two?<|im_end|>\n"
    );
}

/// ChatML over several lines, which stand on the trimming of blocks.
const CHATML: &str = "{% for message in messages %}
    {% if message.role in ['system', 'user', 'assistant'] %}
<|im_start|>{{ message.role }}
{{ message.content | trim }}<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
";

#[test]
fn blocks_are_trimmed_as_in_transformers() {
    assert_eq!(
        render(CHATML, &conversation()).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne & two?<|im_end|>\n\
         <|im_start|>assistant\nThree.<|im_end|>\n<|im_start|>user\nÜbermorgen?<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

/// In the constructs of Llama 2's: slices, `set`, `raise_exception`, the system prompt inside the
/// first turn.
pub(crate) const LLAMA2: &str = "{% if messages[0]['role'] == 'system' %}\
{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}\
{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}\
{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\
{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}\
{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}";

#[test]
fn llama_2_puts_the_system_prompt_into_the_first_turn() {
    assert_eq!(
        render(LLAMA2, &conversation()).unwrap(),
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nOne & two? [/INST] Three. </s>\
         <s>[INST] Übermorgen? [/INST]"
    );
}

#[test]
fn a_template_may_refuse_a_conversation() {
    let error = render(LLAMA2, &[Message::user("a"), Message::user("b")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the model's chat template refuses this conversation: Conversation roles must alternate \
         user/assistant/user/assistant/..."
    );
    assert!(matches!(error, RenderChatError::Refused { .. }));
    let in_macro = "{% macro no() %}{{ raise_exception('never') }}{% endmacro %}{{ no() }}";
    let error = render(in_macro, &[]).unwrap_err();
    assert!(matches!(error, RenderChatError::Refused { message } if message == "never"));
}

/// In the constructs of Llama 3.1's: `is defined`, dates, headers, and the first message skipped.
const LLAMA3: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none %}
    {{- "You have access to these functions:\n\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

const TOOL: &str = r#"{"type": "function", "function": {"name": "weather", "description":
"Is it <wet>? \"é\"", "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
"required": ["city"], "limits": [0.5, 1e-7, 1e22, -3, true, null, [], {}]}}}"#;

#[test]
fn llama_3_shows_the_date_and_the_tools() {
    let conversation = Conversation {
        messages: &conversation()[..2],
        tools: &[Tool::from_json(TOOL).unwrap()],
        add_generation_prompt: true,
        values: &TemplateValues::default(),
        now: UNIX_EPOCH + Duration::from_secs(1_709_210_096),
    };
    let rendered = template(LLAMA3).render_conversation(conversation).unwrap();
    assert_eq!(
        rendered,
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\
         Today Date: 29 Feb 2024\n\nYou have access to these functions:\n\n{\n    \"type\": \
         \"function\",\n    \"function\": {\n        \"name\": \"weather\",\n        \
         \"description\": \"Is it <wet>? \\\"é\\\"\",\n        \"parameters\": {\n            \
         \"type\": \"object\",\n            \"properties\": {\n                \"city\": {\n                    \
         \"type\": \"string\"\n                }\n            },\n            \"required\": [\n                \
         \"city\"\n            ],\n            \"limits\": [\n                0.5,\n                1e-07,\n                \
         1e+22,\n                -3,\n                true,\n                null,\n                [],\n                {}\n            ]\n        }\n    }\n}\n\n\
         Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nOne & two?<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

/// In the constructs of Mistral's: a namespace that counts, the last turn recognised, the end of
/// each answer.
pub(crate) const MISTRAL: &str = r#"{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported: " ~ message["role"]) }}
    {%- endif %}
{%- endfor %}
{{- user_messages | length }}"#;

#[test]
fn mistral_counts_its_turns_in_a_namespace() {
    assert_eq!(
        render(MISTRAL, &conversation()).unwrap(),
        "<s>[INST] One & two?[/INST] Three.</s>[INST] Be brief.\n\nÜbermorgen?\n[/INST]2"
    );
    let other = [Message::user("a"), Message::new("critic", "b")];
    let error = render(MISTRAL, &other).unwrap_err().to_string();
    assert!(error.ends_with("Only user and assistant roles are supported: critic"), "{error}");
}

/// How Mistral 7B v0.3 and Nemo say calls and results.
const MISTRAL_CALLS: &str = r#"{%- for message in messages %}
    {%- if message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ", " }}
        {%- if not message.tool_call_id is defined or message.tool_call_id|length != 9 %}
            {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"#;

#[test]
fn mistral_takes_the_id_of_any_call() {
    let asked_and_told = |id: &str| {
        let arguments = serde_json::Map::new();
        let call = ToolCall { id: Some(id.to_owned()), name: "now".to_owned(), arguments };
        let asks = Message { calls: vec![call], ..Message::assistant("") };
        let text = render(MISTRAL_CALLS, &[asks, Message::tool(Some(id.to_owned()), "noon")]);
        let text = text.unwrap();
        let between = |before: &str| {
            let (_, behind) = text.split_once(before).unwrap();
            behind.split('"').next().unwrap().to_owned()
        };
        (between("\"id\": \""), between("\"call_id\": \""))
    };
    // The last one is as Mistral's own models write them.
    let ids =
        ["call_00c0ffee00c0ffee", "toolu_00c0ffee00c0ffee", "", "é", "abc12-ABC", "D681PevKs"];
    let mut seen = std::collections::BTreeSet::new();
    for id in ids {
        let (asked, told) = asked_and_told(id);
        assert_eq!(asked, told, "{id}");
        assert!(asked.len() == 9 && asked.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
        assert!(seen.insert(asked), "{id}");
    }
    assert!(seen.contains("D681PevKs"), "what is right stays as it is");
}

/// In the constructs of Qwen 3's: reversed messages, string methods, `is string`, thoughts cut out
/// of answers that are not the last.
pub(crate) const QWEN3: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}{{- message.tool_calls[0].name }}{%- endif %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

#[test]
fn qwen_3_forgets_the_thoughts_of_earlier_turns() {
    let messages = [
        Message::user("q"),
        Message::assistant("<think>\nhm\n</think>\n\nanswer"),
        Message::user("q2"),
    ];
    assert_eq!(
        render(QWEN3, &messages).unwrap(),
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>\n\
         <|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    );
    let kept = template(QWEN3).render(&messages[..2], false).unwrap();
    assert_eq!(
        kept,
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\n\
         answer<|im_end|>\n"
    );
}

fn given(source: &str, values: &TemplateValues) -> String {
    let conversation = Conversation {
        messages: &[Message::user("q")],
        tools: &[],
        add_generation_prompt: true,
        values,
        now: UNIX_EPOCH,
    };
    template(source).render_conversation(conversation).unwrap()
}

fn values(json: serde_json::Value) -> Result<TemplateValues, InvalidTemplateValues> {
    TemplateValues::from_json(json.as_object().unwrap().clone())
}

#[test]
fn qwen_3_can_be_told_not_to_think() {
    let asked = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n";
    let thoughtless = format!("{asked}<think>\n\n</think>\n\n");
    assert_eq!(given(QWEN3, &TemplateValues::default()), asked);
    assert_eq!(given(QWEN3, &TemplateValues::without_thinking()), thoughtless);
    let said = |thinks: bool| values(serde_json::json!({ "enable_thinking": thinks })).unwrap();
    assert_eq!(given(QWEN3, &said(false)), thoughtless);
    assert_eq!(given(QWEN3, &said(true)), asked);
    // Who knows no such name takes no notice of it.
    let plain = given(SMOLLM2, &TemplateValues::default());
    assert_eq!(given(SMOLLM2, &said(false)), plain);
    let more =
        serde_json::json!({ "date_string": "1 May", "depth": [1, null, { "b": 2, "a": 1.5 }] });
    let text = given("{{ date_string }} {{ depth | tojson }}", &values(more).unwrap());
    assert!(text.starts_with("1 May [1, null, {"), "{text}");
}

#[test]
fn values_are_few_and_stand_for_nothing_else() {
    for name in ["messages", "tools", "add_generation_prompt", "bos_token", "raise_exception"] {
        let error = values(serde_json::json!({ "fine": 1, name: 1 })).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    let many: serde_json::Map<_, _> =
        (0..100).map(|number| (format!("v{number}"), number.into())).collect();
    let error = TemplateValues::from_json(many).unwrap_err();
    assert!(matches!(error, InvalidTemplateValues::TooMany { found: 100 }));
    let error = values(serde_json::json!({ "v": "x".repeat(100_000) })).unwrap_err();
    assert!(matches!(error, InvalidTemplateValues::TooLong { .. }));
}

#[test]
fn an_answer_that_is_begun_is_not_closed() {
    let begun = |source: &str, answer: &str| {
        let messages = [Message::user("q"), Message::assistant(answer)];
        template(source).render_begun(Conversation {
            messages: &messages,
            tools: &[],
            add_generation_prompt: true,
            values: &TemplateValues::default(),
            now: UNIX_EPOCH,
        })
    };
    for answer in ["The answer", "", "The q", "It is: "] {
        for source in [SMOLLM2, CHATML] {
            let asked = render(source, &[Message::user("q")]).unwrap();
            assert_eq!(begun(source, answer).unwrap(), format!("{asked}{answer}"));
        }
        assert_eq!(begun(LLAMA2, answer).unwrap(), format!("<s>[INST] q [/INST] {answer}"));
    }
    let thoughtless =
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n4";
    assert_eq!(begun(QWEN3, "4").unwrap(), thoughtless);
    assert!(matches!(begun("{{ messages[0].content }}", "4"), Err(RenderChatError::NotShown)));
    assert!(
        matches!(begun(LLAMA3, "4"), Ok(text) if text.ends_with("assistant<|end_header_id|>\n\n4"))
    );
}

#[test]
fn values_are_written_as_python_writes_them() {
    for (source, expected) in [
        ("{{ true }} {{ none }} {{ 1.0 }} {{ [1, 'a', none] }}", "True None 1.0 [1, 'a', None]"),
        ("{{ {'b': 1, 'a': [true]} }}", "{'b': 1, 'a': [True]}"),
        ("{{ {'b': 1, 'a': {}} | tojson }}", r#"{"b": 1, "a": {}}"#),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", r#"{"a": 2, "b": 1}"#),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        (r"{{ '<é\n\x01>' | tojson }}", "\"<é\\n\\u0001>\""),
        ("{{ 'é😀' | tojson(ensure_ascii=true) }}", r#""\u00e9\ud83d\ude00""#),
        ("{{ undefined_thing }}|{{ bos_token }}|{{ unk_token is defined }}", "|<s>|False"),
        ("{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% generation %}\nx\n{% endgeneration %}\ny", "x\ny"),
        ("{{ dict(a=1).items() | list }}{{ 'a b'.split() }}", "[('a', 1)]['a', 'b']"),
        ("{{ 'abc'[::-1] }}{{ 'x' * 3 }}{{ '%s-%d' | format('a', 2) }}", "cbaxxxa-2"),
        ("{{ tools is none }} {{ documents is none }} {{ messages | length }}", "True True 0"),
    ] {
        assert_eq!(render(source, &[]).unwrap(), expected, "{source}");
    }
}

#[test]
fn a_template_that_does_too_much_is_stopped() {
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}\
         {% endfor %}",
        "{% set ns = namespace(x=[0]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}\
         {% endfor %}{{ ns.x | tojson }}",
        "{{ 'x' * 1000000000000 }}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(0) }}",
    ] {
        render(source, &[]).unwrap_err();
    }
    let looping =
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    assert!(matches!(render(looping, &[]).unwrap_err(), RenderChatError::TooMuchWork));
}

#[test]
fn a_long_conversation_is_not_too_much() {
    let turn = "word ".repeat(100);
    let messages: Vec<_> = (0..1000)
        .flat_map(|_| [Message::user(turn.as_str()), Message::assistant(turn.as_str())])
        .collect();
    for source in [SMOLLM2, CHATML, LLAMA2, LLAMA3, MISTRAL, QWEN3] {
        render(source, &messages).unwrap();
    }
}

#[test]
fn what_is_no_template_is_refused() {
    for source in ["{% for x in %}", "{{ 'open", "{% if x %}", "{% nonsense %}"] {
        let error = ChatTemplate::new(source, &specials()).unwrap_err();
        assert!(matches!(error, InvalidChatTemplate::Syntax { .. }), "{source}");
    }
    let long = " ".repeat(TEMPLATE_BYTES_MAX + 1);
    let error = ChatTemplate::new(&long, &specials()).unwrap_err();
    assert!(matches!(error, InvalidChatTemplate::TooLarge { .. }));
    let deep = "(".repeat(100_000);
    ChatTemplate::new(&format!("{{{{ {deep}"), &specials()).unwrap_err();
    assert!(matches!(render("{{ no.such.thing }}", &[]), Err(RenderChatError::Failed { .. })));
    assert!(matches!(render("{% include 'x' %}", &[]), Err(RenderChatError::Failed { .. })));
}

#[test]
fn a_tool_is_an_object() {
    for text in ["", "[]", "1", "{", "{}{}"] {
        Tool::from_json(text).unwrap_err();
    }
    Tool::from_json(&"[".repeat(100_000)).unwrap_err();
}
