"""The speed benchmarks' own arithmetic and their reading of streams, without measuring anything."""

import asyncio

import batching
import latency
import pytest
from PIL import Image
from speed.streamed import Streamed, ask, chat_body, http_client

from covervlm.server import create_app
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.settings import Settings
from tests.server.api.live import live_server
from tests.server.api.scripted import ScriptedEngine


@pytest.fixture(scope="module")
def engine():
    return ScriptedEngine()


@pytest.fixture(scope="module")
def url(engine):
    with live_server(create_app(Settings(), engine)) as url:
        yield url


async def test_a_streamed_answer_has_its_text_counts_and_stages(url):
    async with http_client(url, 1) as client:
        answer = await ask(client, chat_body(Image.new("RGB", (8, 8)), "What?", vision_pruning={"keep_tokens": 64}))
    assert (answer.text, answer.completion_tokens, answer.prompt_tokens) == ("a red circle", 3, 74)
    assert 0 < answer.first_event <= answer.first_text <= answer.end
    assert answer.stages["tower"] == 0.003


async def test_refusals_and_broken_streams_are_errors(url, engine, monkeypatch):
    async with http_client(url, 1) as client:
        with pytest.raises(RuntimeError, match="does not exist"):
            await ask(client, chat_body(Image.new("RGB", (8, 8)), "What?", model="other"))
        steps = [GenerationChunk(0, "a", 1), RuntimeError("bug")]
        monkeypatch.setattr(engine, "script", lambda request: steps)
        with pytest.raises(RuntimeError, match="failed to answer"):
            await ask(client, chat_body(Image.new("RGB", (8, 8)), "What?"))


def rounds(*texts, seconds):
    return batching.Round(seconds, [Streamed(text=text, completion_tokens=10, first_text=0.5) for text in texts])


def test_throughput_is_tokens_over_wall_time_and_the_ratio_is_of_the_same_round():
    alone, together = [rounds("a", "b", seconds=4)] * 2, [rounds("a", "b", seconds=1), rounds("a", "b", seconds=2)]
    text = batching.table(alone, together)
    assert "| 1 | 5 | 4.00 | 500 |" in text
    assert "| 2 | 15 | 1.50 | 500 |" in text
    assert "3.00 times" in text
    assert "2.00 to 4.00" in text


def test_every_answer_that_differs_is_found():
    alone, together = [rounds("a", "b", seconds=1)], [rounds("a", "c", seconds=1)]
    assert batching.differences(alone, alone) == []
    assert batching.differences(alone, together) == ["request 1: 'c' is not 'b'"]


def test_requests_differ_and_have_the_length_and_budget_asked_for():
    requests = batching.bodies(streams=32, tokens=7, keep=16)
    assert len({str(request["messages"]) for request in requests}) == 32
    assert {(r["max_tokens"], r["ignore_eos"], r["vision_pruning"]["keep_tokens"]) for r in requests} == {(7, True, 16)}


def test_latency_rows_are_medians_with_what_stages_leave_unexplained():
    def answers(total, prefill):
        return [Streamed(first_text=total, stages={"tower": 0.1, "prefill": prefill}, prompt_tokens=5)] * 3

    text = latency.table({"unpruned": answers(0.4, 0.2), "mmtok 64": answers(0.2, 0.05)})
    assert "| unpruned | 400.0 | 400.0-400.0 | 0.0 | 0.0 | 0.0 | 100.0 | 0.0 | 200.0 | 100.0 | 5 |" in text
    assert "2.00 times sooner to the first token, 4.00 times to prefill (3 images a row)" in text


def test_latency_asks_pruned_and_unpruned_by_turns_about_new_images(url, engine):
    engine.requests.clear()
    measured = asyncio.run(latency.measure(url, images=2, keep=64, method="mmtok"))
    assert [len(row) for row in measured.values()] == [2, 2]
    methods = [request.pruning.method for request in engine.requests]
    assert methods == ["none", "mmtok"] * (2 + latency.WARM_UP)
    assert len({request.images[0].digest for request in engine.requests}) == len(methods)
