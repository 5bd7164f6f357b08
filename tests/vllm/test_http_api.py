"""Our HTTP API over the vLLM engine."""

import asyncio
import json

import httpx
import pytest
import pytest_asyncio
from chat_bodies import QUESTIONS, body

from covervlm.server import create_app
from covervlm.server.settings import Settings

pytestmark = pytest.mark.parametrize("engines", ["demo"], indirect=True, scope="session")


@pytest_asyncio.fixture
async def client(engines):
    """The app around the engine that other tests use too, so its lifespan, which would stop it, is left out."""
    settings = Settings(engine="vllm", max_images=2, clip_model="none")
    transport = httpx.ASGITransport(create_app(settings, engines.vllm))
    async with httpx.AsyncClient(transport=transport, base_url="http://covervlm", timeout=60) as client:
        yield client


async def test_the_report_names_counts_method_indices_and_coverage(client):
    pruning = {"keep_tokens": 64, "return_indices": True}
    answer = (await client.post("/v1/chat/completions", json=body([1], vision_pruning=pruning))).json()
    whole = (await client.post("/v1/chat/completions", json=body([1]))).json()
    [image] = answer["vision_pruning"]["images"]
    assert (image["total"], image["kept"], image["method"], image["grid"]) == (576, 64, "mmtok", [24, 24])
    assert len(set(image["indices"])) == 64
    assert 0 < image["coverage"] < 1
    assert whole["usage"]["prompt_tokens"] - answer["usage"]["prompt_tokens"] == 512
    assert answer["usage"]["completion_tokens"] == len(answer["choices"][0]["message"]["content"].split()) + 1


async def test_a_stream_says_the_same_as_one_body(client):
    fields = {"vision_pruning": {"keep_tokens": 64}}
    whole = (await client.post("/v1/chat/completions", json=body([2], **fields))).json()
    streamed = await client.post("/v1/chat/completions", json=body([2], stream=True, **fields))
    events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    pieces = [choice["delta"].get("content") or "" for e in events[:-1] for choice in json.loads(e)["choices"]]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]


async def test_prune_reports_without_an_answer(client):
    report = (await client.post("/v1/prune", json=body([3], vision_pruning={"keep_tokens": 16}))).json()
    assert report["images"][0]["kept"] == len(report["images"][0]["indices"]) == 16


async def test_a_budget_in_the_models_name_counts(client):
    answer = (await client.post("/v1/chat/completions", json=body([4]) | {"model": "demo:16"})).json()
    assert answer["vision_pruning"]["images"][0]["kept"] == 16


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"vision_pruning": {"coverage": 0.9}}, "vision_pruning.coverage"),
        ({"vision_pruning": {"keep_tokens": [4, 4]}}, "vision_pruning.keep_tokens"),
        ({"vision_pruning": {"keep_tokens": 0}}, "vision_pruning.keep_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
    ],
)
async def test_what_cannot_be_done_is_a_400_that_names_the_field(client, fields, param):
    response = await client.post("/v1/chat/completions", json=body([1], **fields))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_too_many_images_are_refused(client):
    assert (await client.post("/v1/chat/completions", json=body([1, 2, 3]))).status_code == 400


async def test_metrics_are_ours_and_vllms(client):
    await client.post("/v1/chat/completions", json=body([5], vision_pruning={"keep_tokens": 64}))
    text = (await client.get("/metrics")).text
    assert 'covervlm_vision_tokens_after_total{method="mmtok"}' in text
    assert "vllm:prompt_tokens_total" in text
    assert "vllm:time_to_first_token_seconds_bucket" in text


async def test_a_closed_request_is_aborted_in_vllm(engines, ask):
    """Nobody reads on, so the scheduler must not go on with it."""
    request = ask([6], QUESTIONS[0], max_tokens=400, ignore_eos=True)
    stream = engines.vllm.generate(request)
    await anext(stream)
    await stream.aclose()
    await asyncio.wait_for(until_idle(engines.vllm), 30)


async def test_what_takes_too_long_is_a_504_and_leaves_vllm(client, engines):
    long = body([7], max_tokens=400, ignore_eos=True)
    response = await client.post("/v1/chat/completions", json=long, headers={"X-Request-Timeout": "0.2"})
    assert response.status_code == 504
    await asyncio.wait_for(until_idle(engines.vllm), 30)


async def until_idle(engine):
    while engine._llm.output_processor.has_unfinished_requests():
        await asyncio.sleep(0.01)


async def test_a_full_queue_is_overload(engines, ask, answer, monkeypatch):
    from covervlm.server.core.errors import EngineOverloaded

    monkeypatch.setitem(engines.vllm._unfinished, "somebody", 32 + 256)
    with pytest.raises(EngineOverloaded, match="already waiting"):
        await answer(engines.vllm, ask([1], QUESTIONS[0]))


PLACE = {"at": {"enum": ["top", "left"]}, "zoom": {"type": "integer", "minimum": 1, "maximum": 9}}
PARAMETERS = {"type": "object", "properties": PLACE, "required": ["at", "zoom"], "additionalProperties": False}
LOOK = {"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_that_must_be_follow_their_schema_whether_pruned_or_not(client, stream):
    for pruning in ({}, {"keep_tokens": 16}):
        fields = {"tools": [LOOK], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": None}
        sent = body([5], vision_pruning=pruning, stream=stream, **fields)
        response = await client.post("/v1/chat/completions", json=sent)
        assert response.status_code == 200, response.text
        if stream:
            lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line][:-1]
            choices = [choice for line in lines for choice in json.loads(line)["choices"]]
            deltas = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
            name = deltas[0]["function"]["name"]
            arguments = "".join(delta["function"]["arguments"] for delta in deltas)
            reason = choices[-1]["finish_reason"]
        else:
            [choice] = response.json()["choices"]
            [call] = choice["message"]["tool_calls"]
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            reason = choice["finish_reason"]
        given = json.loads(arguments)
        assert (name, reason, set(given)) == ("look", "tool_calls", {"at", "zoom"})
        assert given["at"] in PLACE["at"]["enum"]
        assert given["zoom"] in range(1, 10)
