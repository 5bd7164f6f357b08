"""OpenAI's Responses API, checked by the openai package: its models, its parameters and its client."""

import json
from pathlib import Path

import openai
import pytest
from openai.types.responses import Response, response_create_params
from PIL import Image

from covervlm.server import create_app
from covervlm.server.api.wire import fields
from covervlm.server.api.wire.responses_request import ResponsesRequest
from covervlm.server.api.wire.sampling import Unless
from covervlm.server.core.errors import EngineOverloaded, EngineUnavailable, RateLimited
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.settings import Settings
from tests.server.api.live import live_server
from tests.server.api.scripted import ScriptedEngine, chat_body, data_url, prompt_report

IMAGE = {"type": "input_image", "image_url": data_url(Image.new("RGB", (8, 6), "red")), "detail": "auto"}
QUESTION = {"type": "input_text", "text": "What color is it?"}
USER = {"role": "user", "content": [IMAGE, QUESTION]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def body(*items, **fields):
    return {"model": "demo", "input": list(items) or "Hello", **fields}


def post(client, **fields):
    return client.post("/v1/responses", json=body(**fields))


def events(text):
    """The data of every event, whose names are their types'."""
    pairs = [event.split("\n") for event in text.strip().split("\n\n")]
    told = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]
    assert all(name == data["type"] for name, data in told)
    return [data for _, data in told]


def test_a_response_has_openais_shape(client):
    answer = client.post("/v1/responses", json=body(USER, vision_pruning={"keep_tokens": 64})).json()
    response = Response.model_validate(answer)
    assert (response.output_text, response.status, response.store) == ("a red circle", "completed", False)
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (74, 3, 77)
    assert answer["vision_pruning"]["images"][0]["kept"] == 64
    assert "vision_pruning" not in post(client).json()


def test_events_come_in_openais_order_and_are_numbered(client):
    told = events(client.post("/v1/responses", json=body(USER, stream=True)).text)
    assert [data["type"].removeprefix("response.") for data in told] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [data["sequence_number"] for data in told] == list(range(len(told)))
    assert told[0]["response"]["status"] == "in_progress"
    assert told[0]["response"]["vision_pruning"]["images"]


def test_what_was_asked_for_comes_back(client, engine):
    engine.recommended = {"temperature": 0.25}
    form = {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}
    tool = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}
    asked = {"metadata": {"a": "b"}, "instructions": "Be brief.", "top_p": 0.5, "max_output_tokens": 9}
    answer = post(client, **asked, text={"format": form}, tools=[tool], tool_choice="none", parallel_tool_calls=False)
    response = Response.model_validate(answer.json())
    assert {name: getattr(response, name) for name in asked} == asked
    assert answer.json()["text"]["format"] == form
    assert (answer.json()["tools"], answer.json()["tool_choice"]) == ([tool], "none")
    assert (response.temperature, response.parallel_tool_calls) == (0.25, False)


def test_fields_reach_the_engine(client, engine):
    form = {"type": "json_schema", "name": "a", "schema": SCHEMA}
    post(client, temperature=0.5, top_p=0.25, max_output_tokens=7, text={"format": form}, model="demo:16")
    [request] = engine.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.25, 7)
    assert (json.loads(sampling.grammar.text), request.pruning.keep_tokens) == (SCHEMA, 16)


def test_a_history_reaches_the_engine_as_it_was_said(client, engine):
    said = {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}
    call = {"type": "function_call", "name": "look", "arguments": "{}"}
    items = [
        USER,
        {"type": "message", "id": "m", "status": "completed", "role": "assistant", "content": [said]},
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "x"},
        {**call, "id": "fc", "call_id": "c1", "status": "completed"},
        {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "blue"},
        {"type": "function_call_output", "call_id": "c2", "output": [{**QUESTION, "text": "red"}, IMAGE]},
        {**call, "call_id": "c3"},
        {"role": "developer", "content": "So?"},
    ]
    response = client.post("/v1/responses", json=body(*items, instructions="Be brief."))
    assert response.status_code == 200, response.text
    messages = engine.requests[0].messages
    assert [(m.role, [p if isinstance(p, str) else "IMAGE" for p in m.content]) for m in messages] == [
        ("system", ["Be brief."]),
        ("user", ["IMAGE", "What color is it?"]),
        ("assistant", ["I look."]),
        ("tool", ["blue"]),
        ("tool", ["red"]),
        ("user", ["IMAGE"]),
        ("assistant", [""]),
        ("system", ["So?"]),
    ]
    assert [[call.id for call in m.tool_calls] for m in messages if m.role == "assistant"] == [["c1", "c2"], ["c3"]]
    assert [m.tool_call_id for m in messages if m.role == "tool"] == ["c1", "c2"]


def test_a_call_is_an_item_of_its_own(client, engine):
    call = '{"name": "look", "arguments": {"at": "sky"}}'
    engine.script = lambda request: [GenerationChunk(0, call, 9, prompt=prompt_report(request), finish_reason="stop")]
    tool = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}
    answer = post(client, tools=[tool], tool_choice={"type": "function", "name": "look"}).json()
    [item] = Response.model_validate(answer).output
    assert (item.type, item.name, item.arguments) == ("function_call", "look", '{"at": "sky"}')
    assert (item.status, answer["tool_choice"]) == ("completed", {"type": "function", "name": "look"})
    assert engine.requests[0].tools.functions[0].strict


def test_log_probabilities_come_where_they_are_included(client):
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    [content] = post(client, **asked).json()["output"][0]["content"]
    assert [entry["token"] for entry in content["logprobs"]] == ["a", " red", " circle"]
    assert len(content["logprobs"][0]["top_logprobs"]) == 2
    told = events(post(client, **asked, stream=True).text)
    deltas = [entry for data in told if data["type"].endswith("text.delta") for entry in data["logprobs"]]
    assert deltas == content["logprobs"]
    assert post(client, top_logprobs=2).json()["output"][0]["content"][0]["logprobs"] == []


def test_an_answer_that_was_cut_off_is_incomplete(client, engine):
    engine.script = lambda request: [GenerationChunk(0, "a", 1, finish_reason="length", prompt=prompt_report(request))]
    answer = post(client).json()
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["output"][0]["status"] == "incomplete"
    last = events(post(client, stream=True).text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")


TAKEN = {
    "include": ["reasoning.encrypted_content"],
    "input": "Hello",
    "instructions": "Be brief.",
    "max_output_tokens": 5,
    "metadata": {"a": "b"},
    "model": "demo",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "high", "summary": "auto"},
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "temperature": 0.5,
    "text": {"format": {"type": "json_object"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 3,
    "top_p": 0.5,
}
IGNORED = {
    "max_tool_calls": 3,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "u",
    "service_tier": "auto",
    "store": True,
    "user": "u",
}
AS_IN_A_CHAT = {
    "chat_template_kwargs": {"enable_thinking": False},
    "frequency_penalty": 0.5,
    "min_p": 0.125,
    "presence_penalty": 0.25,
    "repetition_penalty": 1.5,
    "seed": 7,
    "stop": ["end"],
    "top_k": 40,
}
TOLD = {"enable_response_messages", "timings_per_token", "return_progress"}
"""Of other servers' APIs: what the response says beside what OpenAI's does."""
MARKED = {n: m for n, field in ResponsesRequest.model_fields.items() for m in field.metadata if isinstance(m, Unless)}


def test_every_parameter_of_the_openai_package_has_its_place():
    names = {*response_create_params.ResponseCreateParamsBase.__annotations__, "stream"}
    assert names == {*TAKEN, *IGNORED, *MARKED}
    assert names | {"vision_pruning", *AS_IN_A_CHAT, *TOLD} == set(ResponsesRequest.model_fields)


def test_vllms_extensions_mean_what_they_mean_in_a_chat(client, engine):
    post(client, **AS_IN_A_CHAT)
    client.post("/v1/chat/completions", json=chat_body("Hello", **AS_IN_A_CHAT))
    response, chat = engine.requests
    for name in set(AS_IN_A_CHAT) - {"chat_template_kwargs"}:
        assert getattr(response.sampling, name) == getattr(chat.sampling, name)
    assert response.sampling.top_k == 40
    assert response.template == chat.template
    assert post(client, top_k=-2).json()["error"]["param"] == "top_k"


@pytest.mark.parametrize(("effort", "thinks"), [("none", False), ("minimal", True), ("high", True)])
def test_the_effort_reaches_the_template_as_in_vllm(client, engine, effort, thinks):
    answer = post(client, reasoning={"effort": effort}).json()
    client.post("/v1/chat/completions", json=chat_body("Hello", reasoning_effort=effort))
    for request in engine.requests:
        assert request.template.variables == {"reasoning_effort": effort, "enable_thinking": thinks}
    response = Response.model_validate(answer)
    assert (response.reasoning.effort, response.usage.output_tokens_details.reasoning_tokens) == (effort, 0)
    assert Response.model_validate(post(client).json()).reasoning is None


def test_a_variable_of_the_request_has_the_last_word_over_the_effort(client, engine):
    post(client, reasoning={"effort": "high"}, chat_template_kwargs={"enable_thinking": False})
    assert engine.requests[0].template.variables == {"reasoning_effort": "high", "enable_thinking": False}


def test_an_unknown_effort_is_named(client):
    for asked, param in (({"effort": "huge"}, "reasoning.effort"), ({"mode": "pro"}, "reasoning.mode")):
        assert post(client, reasoning=asked).json()["error"]["param"] == param


@pytest.mark.parametrize("stream", [False, True])
def test_raw_messages_are_the_tokens_and_their_text(client, stream):
    response = post(client, enable_response_messages=True, stream=stream)
    answer = events(response.text)[-1]["response"] if stream else response.json()
    [prompt], [written] = answer["input_messages"], answer["output_messages"]
    assert (prompt["type"], prompt["tokens"], written["tokens"]) == (
        "raw_message_tokens",
        [*range(10)],
        [100, 101, 102],
    )
    assert prompt["message"] == client.post("/detokenize", json={"tokens": prompt["tokens"]}).json()["prompt"]
    assert written["message"] == client.post("/detokenize", json={"tokens": written["tokens"]}).json()["prompt"]
    assert "input_messages" not in post(client).json()


def test_timings_and_progress_come_where_they_are_asked_for(client):
    told = events(post(client, stream=True, timings_per_token=True, return_progress=True).text)
    assert [data["type"] for data in told if "prompt_progress" in data] == ["response.in_progress"]
    assert told[1]["prompt_progress"] == {"total": 10, "cache": 0, "processed": 10, "time_ms": 5.0}
    timed = [data["timings"] for data in told if data["type"] == "response.output_text.delta"]
    assert [timings["predicted_n"] for timings in timed] == [1, 2, 3]
    last = told[-1]["timings"]
    assert (last["prompt_n"], last["prompt_per_second"], last["predicted_n"]) == (10, pytest.approx(2000), 3)
    assert last["predicted_per_second"] == pytest.approx(3e3 / last["predicted_ms"])
    assert not any({"timings", "prompt_progress"} & set(data) for data in events(post(client, stream=True).text))


def test_what_happens_to_every_field_is_documented():
    assert fields.table(fields.RESPONSES) in (Path(__file__).parents[3] / "docs" / "other-apis.md").read_text()


@pytest.mark.parametrize("name", [*TAKEN, *IGNORED])
def test_what_is_taken_or_ignored_is_accepted(client, engine, name):
    assert post(client, **{name: (TAKEN | IGNORED)[name]}).status_code == 200
    if name in IGNORED:
        assert post(client, **{name: IGNORED[name]}).json()["store"] is False
        engine.requests.pop()
        post(client)
        with_it, without = engine.requests
        assert (with_it.prompt, with_it.sampling) == (without.prompt, without.sampling)


@pytest.mark.parametrize("name", MARKED)
def test_what_is_not_supported_is_refused_by_name_unless_it_asks_for_nothing(client, engine, name):
    for value in MARKED[name].neutral:
        assert post(client, **{name: value}).status_code == 200
    served = len(engine.requests)
    response = post(client, **{name: {"other": 17}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)
    assert response.json()["error"]["code"] == "unsupported_parameter"
    assert len(engine.requests) == served


BAD = {**IMAGE, "image_url": "data:image/png;base64,AAAA"}
REFUSALS = {
    "an unknown field": (body(zip=1), "zip"),
    "work in the background": (body(background=True), "background"),
    "an earlier response": (body(previous_response_id="resp_1"), "previous_response_id"),
    "a bad limit": (body(max_output_tokens=0), "max_output_tokens"),
    "a bad temperature": (body(temperature=3), "temperature"),
    "an item of another type": (body({"type": "web_search_call", "id": "w"}), "input[0]"),
    "a reference": (body({"type": "item_reference", "id": "r"}), "input[0]"),
    "a file": (body({"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}), "input[0].content[0]"),
    "no image": (body(USER, {"role": "user", "content": [QUESTION, BAD]}), "input[1].content[1].image_url"),
    "no image of a result": (
        body({"type": "function_call_output", "call_id": "c", "output": [QUESTION, BAD]}, instructions="a"),
        "input[0].output[1].image_url",
    ),
    "a tool of theirs": (body(tools=[{"type": "web_search"}]), "tools[0]"),
    "a tool without a good name": (body(tools=[{"type": "function", "name": "a b"}]), "tools[0].name"),
    "a choice of nothing": (body(tool_choice={"type": "function", "name": "f"}), "tool_choice"),
    "an impossible schema": (
        body(text={"format": {"type": "json_schema", "name": "a", "schema": {"$defs": [[]] * 40_000}}}),
        "text.format.schema",
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_is_refused_is_named_in_the_callers_words(client, engine, kind):
    asked, param = REFUSALS[kind]
    response = client.post("/v1/responses", json=asked)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert engine.requests == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineUnavailable("stopping"), "server_error"),
        (RateLimited("slow down", retry_after=1), "rate_limit_exceeded"),
        (RuntimeError("secret"), "server_error"),
    ],
)
def test_a_failure_on_the_way_ends_the_stream_as_failed(client, engine, error, code):
    engine.script = lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), error]
    text = post(client, stream=True).text
    last = events(text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert (last["response"]["error"]["code"], last["response"]["output"][0]["status"]) == (code, "incomplete")
    assert "secret" not in text


def test_a_refusal_before_the_first_token_has_its_status(client, engine):
    engine.script = lambda request: [EngineOverloaded("full", retry_after=3)]
    assert post(client, stream=True).status_code == 503


@pytest.fixture(scope="module")
def live():
    with (
        live_server(create_app(Settings(clip_model="none"), ScriptedEngine())) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client


def test_openais_client_reads_a_response_whole_and_streamed(live):
    asked = {**body(USER, store=False), "extra_body": {"vision_pruning": {"keep_tokens": 64}}}
    whole = live.responses.create(**asked)
    assert (whole.output_text, whole.usage.input_tokens) == ("a red circle", 74)
    with live.responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert deltas == ["a", " red", " circle"]
    assert (final.output_text, final.usage, final.status) == (whole.output_text, whole.usage, whole.status)


def test_openais_client_raises_its_own_errors(live):
    with pytest.raises(openai.BadRequestError) as refused:
        live.responses.create(**body(previous_response_id="resp_1"))
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        live.responses.create(**body(model="other"))
