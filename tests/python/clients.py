"""Asks a gateway by the official clients of OpenAI and of Anthropic.

    python clients.py http://127.0.0.1:8080

The first thing that is not as it should be ends it with an AssertionError.
"""

import json
import sys

import anthropic
import openai

MODEL = "smollm2-135m"
HELLO = [{"role": "user", "content": "Say hello"}]


def chat(client):
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, max_tokens=12)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason == "length", whole
    assert whole.usage.completion_tokens == 12, whole.usage

    stream = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    streamed, usage = "", None
    for chunk in stream:
        for choice in chunk.choices:
            streamed += choice.delta.content or ""
        usage = chunk.usage or usage
    assert streamed == text, (streamed, text)
    assert usage.completion_tokens == 12, usage

    likely = client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=0, max_tokens=3, logprobs=True, top_logprobs=2
    )
    tokens = likely.choices[0].logprobs.content
    assert len(tokens) == 3, tokens
    for token in tokens:
        assert token.token == token.top_logprobs[0].token and token.logprob <= 0, token

    several = client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=1, seed=3, n=3, max_tokens=8
    )
    assert len({choice.message.content for choice in several.choices}) > 1, several

    turns = [*HELLO, whole.choices[0].message.model_dump(), *HELLO]
    more = client.chat.completions.create(model=MODEL, messages=turns, temperature=0, max_tokens=2)
    assert more.usage.prompt_tokens > whole.usage.prompt_tokens, more
    return text


def forms(client):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "inhabitants": {"type": "integer"}},
        "required": ["city", "inhabitants"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Name a city."}],
        max_tokens=80,
        seed=1,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": schema, "strict": True},
        },
    )
    city = json.loads(answer.choices[0].message.content)
    assert set(city) == {"city", "inhabitants"}, city


def functions(client):
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    weather = {"name": "weather", "description": "The weather of a city", "parameters": parameters}
    request = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "How is the weather in Oslo?"}],
        "tools": [{"type": "function", "function": weather}],
        "max_tokens": 60,
        "temperature": 0,
    }
    answer = client.chat.completions.create(**request, tool_choice="required").choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and call.function.name == "weather", answer
    assert isinstance(json.loads(call.function.arguments)["city"], str), call
    stream = client.chat.completions.create(**request, tool_choice="required", stream=True)
    deltas = [choice.delta for chunk in stream for choice in chunk.choices]
    (piece,) = [piece for delta in deltas for piece in delta.tool_calls or []]
    streamed = {"role": "assistant", "content": None, "tool_calls": [piece.model_dump()]}
    for turn, id in ((answer.message, call.id), (answer.message.model_dump(), call.id), (streamed, piece.id)):
        result = {"role": "tool", "tool_call_id": id, "content": "rain"}
        turns = [*request["messages"], turn, result]
        said = client.chat.completions.create(**{**request, "messages": turns, "tool_choice": "none"})
        assert said.choices[0].message.content, said


def completions(client):
    prompt = "The capital of France is"
    answer = client.completions.create(
        model=MODEL, prompt=[prompt, "One, two, three,"], max_tokens=5, temperature=0, logprobs=1
    )
    assert len(answer.choices) == 2 and "Paris" in answer.choices[0].text, answer
    assert len(answer.choices[0].logprobs.tokens) == 5, answer
    stream = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=5, temperature=0, stream=True
    )
    text = "".join(choice.text for chunk in stream for choice in chunk.choices)
    assert text == answer.choices[0].text, text


def embeddings(client):
    answer = client.embeddings.create(model=MODEL, input=["one", "two"])
    assert [len(entry.embedding) for entry in answer.data] == [576, 576], answer.usage
    plain = client.embeddings.create(model=MODEL, input="two", encoding_format="float")
    apart = zip(plain.data[0].embedding, answer.data[1].embedding)
    assert all(abs(a - b) < 1e-6 for a, b in apart)


def errors(client):
    try:
        client.chat.completions.create(model="no-such-model", messages=HELLO)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error
    else:
        raise AssertionError("a model that is not served is not found")
    try:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=3)
    except openai.BadRequestError as error:
        assert error.param == "temperature", error
    else:
        raise AssertionError("a temperature of 3 is refused")


def messages(client, text):
    greedy = {"temperature": 0}
    request = {"model": MODEL, "max_tokens": 12, "messages": HELLO, "extra_body": greedy}
    whole = client.messages.create(**request)
    assert whole.content[0].text == text and whole.stop_reason == "max_tokens", whole
    assert whole.usage.output_tokens == 12, whole.usage
    with client.messages.stream(**request) as stream:
        assert "".join(stream.text_stream) == text
        assert stream.get_final_message().stop_reason == "max_tokens"
    word = text.split()[1]
    stopped = client.messages.create(**request, stop_sequences=[word, "never"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word), stopped
    client.messages.create(**request, system="Be brief.")
    flag = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    form = {"format": {"type": "json_schema", "schema": {**flag, "additionalProperties": False}}}
    held = client.messages.create(**{**request, "max_tokens": 40}, output_config=form)
    assert isinstance(json.loads(held.content[0].text)["yes"], bool), held
    try:
        client.messages.create(**{**request, "model": "no-such-model"})
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error", error.body
    else:
        raise AssertionError("a model that is not served is not found")


def responses(client, text):
    request = {"model": MODEL, "input": "Say hello", "temperature": 0, "max_output_tokens": 12}
    whole = client.responses.create(**request)
    assert whole.output_text == text and whole.status == "incomplete", whole
    assert whole.incomplete_details.reason == "max_output_tokens", whole
    assert whole.usage.output_tokens == 12, whole.usage
    with client.responses.stream(**request) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(pieces) == text, pieces
    turns = [{"role": "user", "content": "Say hello"}, *whole.output, {"role": "user", "content": "Again"}]
    assert client.responses.create(**{**request, "input": turns}).output_text
    flag = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    schema = {**flag, "additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "flag", "schema": schema, "strict": True}}
    held = client.responses.create(**{**request, "max_output_tokens": 40}, text=form)
    assert isinstance(json.loads(held.output_text)["yes"], bool), held
    try:
        client.responses.create(**request, previous_response_id=whole.id)
    except openai.BadRequestError as error:
        assert error.param == "previous_response_id", error
    else:
        raise AssertionError("responses are not kept")


def message_tools(client):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    weather = {"name": "weather", "description": "The weather of a city", "input_schema": schema}
    question = {"role": "user", "content": "How is the weather in Oslo?"}
    request = {
        "model": MODEL,
        "max_tokens": 60,
        "messages": [question],
        "tools": [weather],
        "extra_body": {"temperature": 0},
    }
    answer = client.messages.create(**request, tool_choice={"type": "any"})
    (call,) = answer.content
    assert (answer.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "weather"), answer
    assert isinstance(call.input["city"], str), call
    with client.messages.stream(**request, tool_choice={"type": "tool", "name": "weather"}) as stream:
        (streamed,) = stream.get_final_message().content
    assert streamed.input == call.input, (streamed, call)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    turns = [
        question,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    said = client.messages.create(**{**request, "messages": turns}, tool_choice={"type": "none"})
    assert said.content[0].text, said


def main(address):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == [MODEL]
    text = chat(client)
    forms(client)
    functions(client)
    completions(client)
    embeddings(client)
    errors(client)
    responses(client, text)
    other = anthropic.Anthropic(base_url=address, api_key="none", max_retries=0)
    messages(other, text)
    message_tools(other)
    print("all answers are as they should be")


if __name__ == "__main__":
    main(sys.argv[1])
