"""Calls of functions with the vocabularies and templates of real checkpoints, through the API."""

import base64
import io
import json
from contextlib import contextmanager

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.settings import Settings
from tests.zoo.templates import QWEN_3

PARAMETERS = {
    "type": "object",
    "properties": {"at": {"enum": ["top", "left"]}, "zoom": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["at", "zoom"],
    "additionalProperties": False,
}
LOOK = {"type": "function", "function": {"name": "look", "description": "Looks closely.", "parameters": PARAMETERS}}
RESULTS = {"c1": "Es gibt 3 Äpfel.", "c2": '{"found": "<tool_call>"}'}


def call(id, arguments):
    return {"id": id, "type": "function", "function": {"name": "look", "arguments": json.dumps(arguments)}}


TURNS = [
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("c1", {"at": "top", "zoom": 2}), call("c2", {"at": "é"})],
    },
    *({"role": "tool", "tool_call_id": id, "content": said} for id, said in RESULTS.items()),
    {"role": "assistant", "content": "Three."},
]


@contextmanager
def served(path, **settings):
    engine = TransformersEngine(TransformersEngineConfig(str(path), threads=1))
    with TestClient(create_app(Settings(served_model_name="zoo", **settings), engine)) as client:
        yield engine, client


@pytest.fixture
def question(blocks):
    buffer = io.BytesIO()
    blocks(112, 112).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is on top?"}]
    return {"role": "user", "content": content}


def ask(client, *messages, **fields):
    body = {"model": "zoo", "messages": messages, "max_completion_tokens": 200, "temperature": 1.5, "seed": 1} | fields
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def check_calls(choice, *, most=None):
    calls = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    for made in calls[: len(calls) - (choice["finish_reason"] == "length")]:
        assert made["function"]["name"] == "look"
        Draft202012Validator(PARAMETERS).validate(json.loads(made["function"]["arguments"]))
    assert most is None or len(calls) <= most
    return calls


def test_a_template_with_tools_has_them_in_each_turn_as_transformers_own_rendering_does(specimens, question):
    specimen = specimens("qwen3-vl")
    tokenizer = specimen.tokenizer
    with served(specimen.path) as (engine, client):
        assert engine.info.tool_format == "hermes"
        asked = []
        render = engine._adapter.tokenize
        engine._adapter.tokenize = lambda *request: asked.append(render(*request)) or asked[-1]
        ask(client, question, *TURNS[:3], tools=[LOOK], max_completion_tokens=1)
        calls = check_calls(ask(client, question, tools=[LOOK], tool_choice="required"))
        back = {"role": "assistant", "content": None, "tool_calls": calls[:1]}
        result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "7"}
        ask(client, question, back, result, tools=[LOOK], max_completion_tokens=1)
        turns = [*TURNS, {"role": "user", "content": "Sure?"}]
        ask(client, question, *turns, tools=[LOOK], tool_choice="none", max_completion_tokens=1)
    picture = [{"type": "image"}, {"type": "text", "text": "What is on top?"}]
    seven = {"role": "tool", "content": "7"}
    for ids, chat, tools in (
        (asked[0], TURNS[:3], [LOOK]),
        (asked[2], [back, seven], [LOOK]),
        (asked[3], turns, None),
    ):
        chat = [{"role": "user", "content": picture}, *(expected(turn) for turn in chat)]
        text = tokenizer.apply_chat_template(
            chat, tools=tools, chat_template=QWEN_3, add_generation_prompt=True, tokenize=False
        )
        assert tokenizer.decode(ids) == text
        assert list(ids) == tokenizer(text).input_ids


def expected(turn):
    """As transformers' documentation has it: arguments are objects."""
    if not turn.get("tool_calls"):
        return turn
    calls = [
        {"function": {"name": each["function"]["name"], "arguments": json.loads(each["function"]["arguments"])}}
        for each in turn["tool_calls"]
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def test_calls_that_must_be_work_with_every_vocabulary_and_template(specimen, question):
    with served(specimen.path) as (engine, client):
        assert engine.info.tool_format == ("hermes" if specimen.name == "qwen3-vl" else None)
        named = {"type": "function", "function": {"name": "look"}}
        for choice in (named, "required"):
            calls = check_calls(ask(client, question, tools=[LOOK], tool_choice=choice), most=128)
            assert calls
        back = [
            {"role": "assistant", "content": None, "tool_calls": calls[:1]},
            {"role": "tool", "tool_call_id": calls[0]["id"], "content": "Seven."},
        ]
        assert ask(client, question, *back)["message"]["content"]


@pytest.mark.parametrize("form", ["hermes", "mistral", "llama3_json", "json"])
def test_the_form_may_be_set_where_the_template_has_none(specimens, question, form):
    with served(specimens("qwen2.5-vl").path, tool_format=form) as (_, client):
        ask(client, question, tools=[LOOK], max_completion_tokens=4)
        check_calls(ask(client, question, tools=[LOOK], tool_choice="required", parallel_tool_calls=False), most=1)


CALL = "messages[1].tool_calls[0]"


def called(**change):
    """A call by an assistant with something changed, and its result."""
    made = call("c1", {"at": "top"}) | change
    if "arguments" in change:
        made = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": change["arguments"]}}
    return [{"role": "assistant", "tool_calls": [made]}, {"role": "tool", "tool_call_id": "c1", "content": "7"}]


@pytest.mark.parametrize("checkpoint", ["qwen3-vl", "qwen2.5-vl"])
def test_calls_that_come_back_damaged_are_taken_as_text_or_refused_by_their_place(specimens, question, checkpoint):
    texts = ("{at: top", "", "null", "[1, 2]", "7", '"top"', '{"at": "\\ud800"}', '{"at": NaN}')
    taken = [called(arguments=text) for text in texts]
    taken += [called(id=""), called(id=None), [called()[1]], [called()[0]], [*called(), called()[1]]]
    taken.append([called()[0], {"role": "tool", "tool_call_id": "c9", "content": "7"}])
    taken.append([called()[0], {"role": "tool", "content": "7"}])
    refused = [
        (called(function=None), f"{CALL}.function"),
        (called(arguments={"at": "top"}), f"{CALL}.function.arguments"),
        (called(arguments=None), f"{CALL}.function.arguments"),
        (called(type="magic"), f"{CALL}.type"),
        (called(function={"name": "", "arguments": "{}"}), f"{CALL}.function.name"),
        ([{"role": "assistant", "tool_calls": [None]}], CALL),
        ([{"role": "assistant", "tool_calls": {}}], "messages[1].tool_calls"),
        ([{"role": "tool", "tool_call_id": "c1", "content": None}], "messages[1].content"),
    ]
    with served(specimens(checkpoint).path, tool_format="hermes") as (_, client):
        body = {"model": "zoo", "tools": [LOOK], "max_completion_tokens": 1}
        for turns in taken:
            answer = client.post("/v1/chat/completions", json={**body, "messages": [question, *turns]})
            assert answer.status_code == 200, (turns, answer.text)
        for text in ("[" * 5000, "9" * 5000):  # may be too long for the context, but is no fault of the server's
            answer = client.post("/v1/chat/completions", json={**body, "messages": [question, *called(arguments=text)]})
            assert answer.status_code in (200, 400), answer.text
        for turns, place in refused:
            answer = client.post("/v1/chat/completions", json={**body, "messages": [question, *turns]})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, place), answer.text
