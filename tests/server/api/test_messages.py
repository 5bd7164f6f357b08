"""Anthropic's Messages API, checked by the anthropic package: its models, its parameters and its client."""

import json
from pathlib import Path

import anthropic
import pytest
from anthropic.types import ErrorResponse, Message, message_count_tokens_params, message_create_params
from PIL import Image
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.api.wire import fields
from covervlm.server.api.wire.messages_request import CountTokensRequest, MessagesRequest
from covervlm.server.api.wire.sampling import Unless
from covervlm.server.core.errors import EngineOverloaded, EngineUnavailable, InvalidRequest
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.settings import Settings
from tests.server.api.live import live_server
from tests.server.api.scripted import Gate, ScriptedEngine, data_url, prompt_report

DATA = data_url(Image.new("RGB", (8, 6), "red"))
IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": DATA.partition(",")[2]},
    "cache_control": {"type": "ephemeral"},
}
QUESTION = {"type": "text", "text": "What color is it?"}
THOUGHT = {"type": "thinking", "thinking": "Red?", "signature": "s"}
CALL = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "ské"}}


def body(*content, **fields):
    messages = [{"role": "user", "content": list(content) or "Hello"}]
    return {"model": "demo", "max_tokens": 8, "messages": messages, **fields}


def events(text):
    """(name, data) of every event."""
    pairs = [event.split("\n") for event in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


def test_a_message_has_anthropics_shape(client):
    response = client.post("/v1/messages", json=body(IMAGE, QUESTION, vision_pruning={"keep_tokens": 64}))
    answer = response.json()
    Message.model_validate(answer, strict=True)
    assert answer["content"] == [{"type": "text", "text": "a red circle"}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (74, 3)
    assert answer["vision_pruning"]["images"][0]["kept"] == 64


def test_events_come_in_anthropics_order(client):
    response = client.post("/v1/messages", json=body(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    told = events(response.text)
    assert all(name == data["type"] for name, data in told)
    assert told[0][1]["message"]["usage"]["output_tokens"] == 0
    assert [name for name, _ in told] == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_sampling_and_pruning_reach_the_engine(client, engine):
    asked = body(IMAGE, temperature=0.5, top_p=0.25, top_k=3, stop_sequences=["END"], model="demo:16")
    assert client.post("/v1/messages", json=asked).status_code == 200
    [request] = engine.requests
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (8, 0.5, 0.25, 3)
    assert (sampling.stop, request.pruning.keep_tokens) == (("END",), 16)


def test_a_schema_holds_the_answer(client, engine):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    config = {"format": {"type": "json_schema", "schema": schema}}
    assert client.post("/v1/messages", json=body(output_config=config)).status_code == 200
    assert json.loads(engine.requests[0].sampling.grammar.text) == schema


def test_a_history_reaches_the_engine_as_it_was_said(client, engine):
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "blue"}, IMAGE]}
    history = [
        {"role": "user", "content": [IMAGE, QUESTION]},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, CALL]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
        {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "Hm."}]},
        {"role": "user", "content": "Go on."},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "a"}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t2", "is_error": True}]},
    ]
    system = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
    response = client.post("/v1/messages", json=body(system=system) | {"messages": history})
    assert response.status_code == 200, response.text
    said = [(m.role, [p if isinstance(p, str) else "IMAGE" for p in m.content]) for m in engine.requests[0].messages]
    assert said == [
        ("system", ["Be brief.", "Be kind."]),
        ("user", ["IMAGE", "What color is it?"]),
        ("assistant", ["I look."]),
        ("tool", ["blue"]),
        ("user", ["IMAGE", "So?"]),
        ("assistant", ["Hm."]),
        ("user", ["Go on."]),
        ("assistant", [""]),
        ("tool", [""]),
    ]
    calls = [call for message in engine.requests[0].messages for call in message.tool_calls]
    assert [(call.id, call.name, json.loads(call.arguments)) for call in calls] == [("t1", "look", {"at": "ské"})]
    assert [m.tool_call_id for m in engine.requests[0].messages if m.role == "tool"] == ["t1", "t2"]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_a_call_is_a_block_of_its_own(client, engine, choice):
    call = '{"name": "look", "arguments": {"at": "sky"}}'
    engine.script = lambda request: [GenerationChunk(0, call, 9, prompt=prompt_report(request), finish_reason="stop")]
    tool = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
    answer = client.post("/v1/messages", json=body(tools=[tool], tool_choice=choice)).json()
    [block] = Message.model_validate(answer, strict=True).content
    assert (block.type, block.name, block.input) == ("tool_use", "look", {"at": "sky"})
    assert answer["stop_reason"] == "tool_use"
    assert [function.name for function in engine.requests[0].tools.functions] == ["look"]


@pytest.mark.parametrize(
    ("tool", "place"),
    [
        ({"name": "a b", "input_schema": {}}, "'tools[0].name'"),
        ({"name": "a", "input_schema": {"type": "array"}}, "'tools[0].input_schema.type'"),
    ],
)
def test_what_is_wrong_with_a_tool_is_named_where_it_was_sent(client, tool, place):
    response = client.post("/v1/messages", json=body(tools=[tool], tool_choice={"type": "any"}))
    assert place in response.json()["error"]["message"]


def test_an_answer_goes_on_from_where_the_caller_has_begun_it(client, engine):
    begun = [*body()["messages"], {"role": "assistant", "content": "It is"}]
    assert client.post("/v1/messages", json=body() | {"messages": begun}).status_code == 200
    assert engine.requests[0].template.continue_final_message


def chunk(text, **fields):
    return lambda request: [GenerationChunk(0, text, 1, prompt=prompt_report(request), **fields)]


@pytest.mark.parametrize(
    ("script", "reason", "sequence"),
    [
        (chunk("a", finish_reason="stop"), "end_turn", None),
        (chunk("a", finish_reason="length"), "max_tokens", None),
        (chunk("a", finish_reason="stop", stop_string="END"), "stop_sequence", "END"),
        (chunk("a", finish_reason="length", stop_string="END"), "max_tokens", None),
        (chunk("", finish_reason="stop"), "end_turn", None),
    ],
)
def test_why_an_answer_ended(client, engine, script, reason, sequence):
    engine.script = script
    whole = client.post("/v1/messages", json=body()).json()
    told = dict(events(client.post("/v1/messages", json=body(stream=True)).text))
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    assert told["message_delta"]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
    assert [block["type"] for block in whole["content"]] == ["text"]


TAKEN = {
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "Hello"}],
    "model": "demo",
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    "stop_sequences": ["a"],
    "stream": True,
    "system": "Be brief.",
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
}
IGNORED = {
    "cache_control": {"type": "ephemeral"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
    "user_profile_id": "u",
    "workspace_id": "w",
}
CHATS = {"tool_choice", "tools"}
"""What becomes of them is for the chat to say."""
PLACES = {MessagesRequest: message_create_params.MessageCreateParamsStreaming}
PLACES[CountTokensRequest] = message_count_tokens_params.MessageCountTokensParams


def marks(model):
    return {n: m for n, field in model.model_fields.items() for m in field.metadata if isinstance(m, Unless)}


@pytest.mark.parametrize("model", PLACES)
def test_every_parameter_of_the_anthropic_package_has_its_place(model):
    names = set(PLACES[model].__annotations__) | set(getattr(PLACES[model], "__required_keys__", ()))
    names |= set(message_create_params.MessageCreateParamsBase.__annotations__) if model is MessagesRequest else set()
    assert names <= {*TAKEN, *IGNORED, *CHATS, *marks(model)}
    assert names <= set(model.model_fields)


def test_what_happens_to_every_field_is_documented():
    assert fields.table(fields.MESSAGES) in (Path(__file__).parents[3] / "docs" / "other-apis.md").read_text()


@pytest.mark.parametrize("name", [*TAKEN, *IGNORED])
def test_what_is_taken_or_ignored_is_accepted(client, engine, name):
    assert client.post("/v1/messages", json=body(**{name: (TAKEN | IGNORED)[name]})).status_code == 200
    if name in IGNORED:
        client.post("/v1/messages", json=body())
        with_it, without = engine.requests
        assert (with_it.prompt, with_it.sampling) == (without.prompt, without.sampling)


MARKED = marks(MessagesRequest)


@pytest.mark.parametrize("name", MARKED)
def test_what_is_not_supported_is_refused_by_name_unless_it_asks_for_nothing(client, engine, name):
    for value in MARKED[name].neutral:
        assert client.post("/v1/messages", json=body(**{name: value})).status_code == 200
    served = len(engine.requests)
    response = client.post("/v1/messages", json=body(**{name: {"other": 17}}))
    assert response.status_code == 400
    assert f"'{name}'" in response.json()["error"]["message"]
    assert len(engine.requests) == served


def image(**source):
    return {"type": "image", "source": source}


REFUSALS = {
    "an unknown field": (body(zip=1), "Unknown parameter: 'zip'"),
    "no limit": ({"model": "demo", "messages": [{"role": "user", "content": "a"}]}, "'max_tokens'"),
    "a bad limit": (body(max_tokens=0), "'max_tokens'"),
    "a bad temperature": (body(temperature=-1), "'temperature'"),
    "a bad stop": (body(stop_sequences=[""]), "'stop_sequences'"),
    "a document": (body({"type": "document", "source": {}}), "'document'"),
    "a file": (body(image(type="file", file_id="f")), "Images of type 'file' are not supported"),
    "no image": (body(QUESTION, image(type="base64", media_type="image/png", data="AAAA")), ".content[1].source.data"),
    "no image of a result": (
        body({"type": "tool_result", "tool_use_id": "t", "content": [image(type="url", url="ftp://a")]}, system="s"),
        "messages[0].content[0].content[0].source.url",
    ),
    "a tool of theirs": (body(tools=[{"type": "bash_20250124", "name": "bash"}]), "'bash_20250124'"),
    "a choice without a name": (body(tool_choice={"type": "tool"}), "'tool_choice'"),
    "a user who calls": (body(CALL), "messages[0]"),
    "an impossible schema": (
        body(
            output_config={
                "format": {"type": "json_schema", "schema": {"properties": {f"p{i}": {} for i in range(2000)}}}
            }
        ),
        "output_config.format.schema",
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_is_refused_is_named_in_the_callers_words(client, engine, kind):
    asked, words = REFUSALS[kind]
    response = client.post("/v1/messages", json=asked)
    error = ErrorResponse.model_validate(response.json(), strict=True)
    assert (response.status_code, error.error.type) == (400, "invalid_request_error")
    assert words in error.error.message
    assert error.request_id == response.headers["x-request-id"]
    assert engine.requests == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("too long", param="messages"), 400, "invalid_request_error"),
        (EngineOverloaded("full", retry_after=3), 503, "overloaded_error"),
        (EngineUnavailable("stopping"), 503, "overloaded_error"),
        (RuntimeError("secret"), 500, "api_error"),
    ],
)
def test_failures_have_anthropics_shape_and_status(client, engine, stream, error, status, kind):
    engine.script = lambda request: [error]
    response = client.post("/v1/messages", json=body(stream=stream))
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
    assert "secret" not in response.text


def test_a_failure_on_the_way_is_the_last_event(client, engine):
    engine.script = lambda request: [
        GenerationChunk(0, "a", 1, prompt=prompt_report(request)),
        EngineUnavailable("The server is stopping."),
    ]
    name, last = events(client.post("/v1/messages", json=body(stream=True)).text)[-1]
    assert name == "error"
    assert ErrorResponse.model_validate(last).error.message == "The server is stopping."


def test_time_that_runs_out_on_the_way_is_told_in_an_event_of_that_name():
    gate = Gate()
    engine = ScriptedEngine(lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), gate])
    with TestClient(create_app(Settings(clip_model="none"), engine)) as client:
        late = client.post("/v1/messages", json=body(stream=True), headers={"X-Request-Timeout": "1"})
    assert events(late.text)[-1][0] == "error"
    assert events(late.text)[-1][1]["error"]["type"] == "timeout_error"


def test_a_key_may_come_as_anthropics_clients_send_it(engine):
    with TestClient(create_app(Settings(clip_model="none", api_key="one"), engine)) as client:
        refused = client.post("/v1/messages", json=body(), headers={"x-api-key": "two"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert client.post("/v1/messages", json=body(), headers={"x-api-key": "one"}).status_code == 200


def test_tokens_are_counted_as_they_would_be_read(client, engine):
    asked = body(IMAGE, QUESTION, vision_pruning={"keep_tokens": 4})
    del asked["max_tokens"]
    assert client.post("/v1/messages/count_tokens", json=asked).json() == {"input_tokens": 14}
    [request] = engine.requests
    assert (len(request.images), request.pruning.keep_tokens) == (1, 4)
    refused = client.post("/v1/messages/count_tokens", json={**asked, "max_tokens": 3})
    assert "'max_tokens'" in refused.json()["error"]["message"]


@pytest.fixture(scope="module")
def live():
    engine = ScriptedEngine()
    with (
        live_server(create_app(Settings(clip_model="none", api_key="one"), engine)) as url,
        anthropic.Anthropic(base_url=url, api_key="one", max_retries=0) as client,
    ):
        yield client, engine


def test_anthropics_client_reads_a_message_whole_and_streamed(live):
    client, _ = live
    asked = body(IMAGE, QUESTION)
    message = client.messages.create(**asked, extra_body={"vision_pruning": {"keep_tokens": 64}})
    assert (message.content[0].text, message.usage.input_tokens) == ("a red circle", 74)
    with client.messages.stream(**asked, extra_body={"vision_pruning": {"keep_tokens": 64}}) as stream:
        assert list(stream.text_stream) == ["a", " red", " circle"]
        final = stream.get_final_message()
    same = {"content", "stop_reason", "stop_sequence", "usage", "model", "role"}
    assert final.model_dump(include=same, exclude_unset=True) == message.model_dump(include=same, exclude_unset=True)


def test_anthropics_client_raises_its_own_errors(live):
    client, engine = live
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**body(model="other"))
    with pytest.raises(anthropic.BadRequestError, match="speed"):
        client.messages.create(**body(), extra_body={"speed": "fast"})
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="two").messages.create(**body())
    usual = engine.script
    engine.script = lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), RuntimeError("x")]
    try:
        with pytest.raises(anthropic.APIStatusError, match="failed to answer"), client.messages.stream(**body()) as s:
            s.get_final_message()
    finally:
        engine.script = usual
