"""tools and tool_choice of chat completions, checked by the openai package's own types."""

import json

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from covervlm.server.core.generation import NO_TOOLS, Function, GenerationChunk, ToolUse
from covervlm.server.core.grammar import MAX_CHARACTERS, MAX_PROPERTIES
from tests.server.api.scripted import chat_body, logprob, prompt_report

PARAMETERS = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
LOOK = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": PARAMETERS}}
WAIT = {"type": "function", "function": {"name": "wait"}}
NAMED = {"type": "function", "function": {"name": "look"}}
ANSWER = (
    'I look.\n<tool_call>\n{"name": "look", "arguments": {"at": "the sky"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>'
)
CALLS = [("look", '{"at": "the sky"}'), ("wait", "{}")]


@pytest.fixture
def hermes(engine):
    """A model whose template calls in the form of Hermes."""
    engine.tool_format = "hermes"
    return engine


def says(*texts, reason="stop"):
    def script(request):
        steps = []
        for place, text in enumerate(texts):
            for index in range(request.sampling.n):
                logprobs = (logprob(text, -0.5),) if request.sampling.logprobs else ()
                last = reason if place == len(texts) - 1 else None
                steps.append(GenerationChunk(index, text, 1, logprobs, last, None if steps else prompt_report(request)))
        return steps

    return script


def post(client, **fields):
    response = client.post("/v1/chat/completions", json=chat_body("What is up?", **fields))
    assert response.status_code == 200, response.text
    return response


def whole(client, **fields):
    return ChatCompletion.model_validate(post(client, **fields).json(), strict=True).choices


def chunks(client, **fields):
    lines = post(client, stream=True, **fields).text.split("\n\n")[:-2]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    return [ChatCompletionChunk.model_validate(event, strict=True) for event in events]


def called(message):
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def test_calls_are_told_as_openais_api_tells_them(client, hermes):
    hermes.script = says(*ANSWER)
    [choice] = whole(client, tools=[LOOK, WAIT])
    assert (choice.message.content, called(choice.message)) == ("I look.", CALLS)
    assert choice.finish_reason == "tool_calls"
    ids = [call.id for call in choice.message.tool_calls]
    assert len(set(ids)) == 2
    assert all(id.startswith("call_") for id in ids)


def test_calls_alone_have_no_content(client, hermes):
    hermes.script = says(ANSWER.removeprefix("I look."))
    message = post(client, tools=[LOOK, WAIT]).json()["choices"][0]["message"]
    assert message["content"] is None


def test_an_answer_without_calls_has_no_field_for_them(client, hermes):
    answer = post(client, tools=[LOOK]).json()["choices"][0]
    assert answer["message"] == {"role": "assistant", "content": "a red circle", "refusal": None}
    assert answer["finish_reason"] == "stop"


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": True}, {"parallel_tool_calls": False}])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_deltas_joined_are_the_whole(client, hermes, fields, size):
    hermes.script = says(*(ANSWER[i : i + size] for i in range(0, len(ANSWER), size)))
    answers = whole(client, tools=[LOOK, WAIT], **fields)
    events = chunks(client, tools=[LOOK, WAIT], **fields)
    assert len(answers) == fields.get("n", 1)
    for answer in answers:
        mine = [choice for event in events for choice in event.choices if choice.index == answer.index]
        calls: list[list[str]] = []
        for delta in (choice.delta for choice in mine):
            for call in delta.tool_calls or []:
                if call.id:
                    assert (call.index, call.type) == (len(calls), "function")
                    calls.append([call.function.name, ""])
                else:
                    assert call.function.name is None
                calls[call.index][1] += call.function.arguments
        assert [tuple(call) for call in calls] == called(answer.message)
        assert len(calls) == (1 if "parallel_tool_calls" in fields else 2)
        assert "".join(choice.delta.content or "" for choice in mine) == answer.message.content
        assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["tool_calls"]
        told = [entry.token for choice in mine if choice.logprobs for entry in choice.logprobs.content]
        assert told == ([entry.token for entry in answer.logprobs.content] if "logprobs" in fields else [])


def test_a_call_that_is_cut_off_ends_with_length_and_keeps_what_there_is(client, hermes):
    hermes.script = says('<tool_call>\n{"name": "look", "arguments": {"at": "the', reason="length")
    [choice] = whole(client, tools=[LOOK])
    assert (choice.finish_reason, called(choice.message)) == ("length", [("look", '{"at": "the')])


def test_tools_reach_the_engine(client, hermes):
    post(client, tools=[LOOK, WAIT])
    [request] = hermes.requests
    look = Function("look", "Looks.", PARAMETERS)
    wait = Function("wait", "", {"type": "object", "properties": {}, "additionalProperties": False})
    assert request.tools == ToolUse((look, wait), format="hermes")
    assert request.sampling.grammar is None


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": None}, {"tools": [LOOK], "tool_choice": "none"}])
def test_without_tools_or_with_none_of_them_calls_are_text(client, hermes, fields):
    hermes.script = says(ANSWER)
    [choice] = whole(client, **fields)
    assert (choice.message.content, choice.message.tool_calls) == (ANSWER, None)
    assert hermes.requests[0].tools == ToolUse(format="hermes")


@pytest.mark.parametrize(("choice", "reason"), [("required", "tool_calls"), (NAMED, "stop")])
def test_a_call_that_must_be_is_held_to_by_a_grammar_on_any_model(client, engine, choice, reason):
    engine.script = says('{"name": "look", "arguments": {"at": "the sky"}}')
    [answer] = whole(client, tools=[LOOK, WAIT], tool_choice=choice)
    assert (called(answer.message), answer.finish_reason) == (CALLS[:1], reason)
    [request] = engine.requests
    assert request.sampling.grammar.kind == "tools"
    assert len(request.tools.functions) == (2 if choice == "required" else 1)


def test_a_model_that_knows_no_tools_can_not_choose_and_the_caller_is_told_what_can_be_done(client, engine):
    response = client.post("/v1/chat/completions", json=chat_body("Hello", tools=[LOOK]))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "tools", "unsupported_parameter")
    assert "--tool-format" in error["message"]
    assert "'required'" in error["message"]
    assert engine.requests == []


def test_where_calls_may_be_an_answer_may_follow_its_schema_instead(client, hermes):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": PARAMETERS}}
    post(client, tools=[LOOK], response_format=form)
    assert "answer: %json" in hermes.requests[0].sampling.grammar.text


def test_forms_whose_marker_is_a_special_token_have_it_in_their_text(client, hermes):
    hermes.tool_format = "mistral"
    hermes.script = says('[TOOL_CALLS][{"name": "wait", "arguments": {}}]')
    [choice] = whole(client, tools=[WAIT])
    assert called(choice.message) == [("wait", "{}")]
    assert len(choice.message.tool_calls[0].id) == 9
    assert not hermes.requests[0].sampling.skip_special_tokens


def tool(**function):
    return [WAIT, {"type": "function", "function": {"name": "f"} | function}]


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


REFUSED = {
    "a name with a blank": (tool(name="a b"), "tools[1].function.name"),
    "a name with a letter of another script": (tool(name="é"), "tools[1].function.name"),
    "a long name": (tool(name="a" * 65), "tools[1].function.name"),
    "an empty name": (tool(name=""), "tools[1].function.name"),
    "a name with a line's end": (tool(name="a\n"), "tools[1].function.name"),
    "a name that is taken": (tool(name="wait"), "tools[1].function.name"),
    "no name": ([{"type": "function", "function": {}}], "tools[0].function.name"),
    "no function": ([{"type": "function"}], "tools[0].function"),
    "another type": ([{"type": "custom", "custom": {"name": "f"}}], "tools[0]"),
    "a field that is not known": (tool(returns={}), "tools[1].function.returns"),
    "parameters that are no object": (tool(parameters=[]), "tools[1].function.parameters"),
    "arguments that are no object": (tool(parameters={"type": "array"}), "tools[1].function.parameters.type"),
    "a schema that nests too deeply": (tool(parameters=nested(40)), "tools[1].function.parameters"),
    "too many properties": (
        tool(parameters={"properties": {f"p{i}": {} for i in range(MAX_PROPERTIES + 1)}}),
        "tools[1].function.parameters",
    ),
    "a long description": (tool(description="x" * 20_000), "tools[1].function.description"),
    "too much in all": (
        [
            {"type": "function", "function": {"name": f"f{i}", "description": "x" * (MAX_CHARACTERS["json"] // 16)}}
            for i in range(17)
        ],
        "tools",
    ),
    "too many": ([{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)], "tools"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_with_a_tool_is_named_by_its_place(client, hermes, kind):
    tools, param = REFUSED[kind]
    response = client.post("/v1/chat/completions", json=chat_body("Hello", tools=tools))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert hermes.requests == []


CHOICES = {
    "a choice among none": ({"tool_choice": "auto"}, "tool_choice"),
    "a call among none": ({"tool_choice": "required", "tools": []}, "tool_choice"),
    "another function": ({"tool_choice": NAMED, "tools": [WAIT]}, "tool_choice"),
    "a word that is not known": ({"tool_choice": "any", "tools": [WAIT]}, "tool_choice"),
    "a number": ({"tool_choice": 3, "tools": [WAIT]}, "tool_choice"),
    "no name": ({"tool_choice": {"type": "function", "function": {}}, "tools": [WAIT]}, "tool_choice.function.name"),
    "another type": ({"tool_choice": {"type": "allowed_tools"}, "tools": [WAIT]}, "tool_choice"),
    "another form": ({"tool_choice": "required", "tools": [WAIT], "guided_regex": "a"}, "guided_regex"),
    "a form that calls can not be beside": ({"tools": [WAIT], "guided_choice": ["a"]}, "guided_choice"),
    "no switch": ({"parallel_tool_calls": "yes", "tools": [WAIT]}, "parallel_tool_calls"),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_what_is_wrong_with_a_choice_is_named(client, hermes, kind):
    fields, param = CHOICES[kind]
    response = client.post("/v1/chat/completions", json=chat_body("Hello", **fields))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_no_choice_among_no_tools_is_no_mistake(client, engine):
    post(client, tool_choice="none")
    assert engine.requests[0].tools == NO_TOOLS
