"""The embedded engine on every checkpoint of the zoo answers as transformers does, also in company and streamed."""

import asyncio
import base64
import hashlib
import io
import json
from types import SimpleNamespace

import pytest
import pytest_asyncio
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.core.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    PruningPolicy,
    SamplingParams,
)
from covervlm.server.engines.detokenizer import vocabulary_of
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.settings import Settings
from tests.zoo.photographs import photograph

QUESTIONS = ["What is this?", "Wie heißt das Tier 🦜 in Zürich?", "これは何ですか\nThe  answer:"]
SIZES = {"no image": [], "one image": [(500, 300)], "two images": [(120, 400), (64, 64)]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(specimen):
    engine = TransformersEngine(TransformersEngineConfig(str(specimen.path), threads=1))
    await engine.start()
    yield SimpleNamespace(engine=engine, specimen=specimen)
    await engine.stop()


def ask(question, images=(), pruning=None, **sampling) -> GenerationRequest:
    parts = [ImagePart(i, hashlib.sha256(repr(i.size).encode() + i.tobytes()).hexdigest()) for i in images]
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, "logprobs": True} | sampling)
    message = Message("user", (*parts, question))
    return GenerationRequest("test", (message,), params, PruningPolicy(**pruning or {}))


async def answered(engine, request):
    """Text, joined bytes of the log probabilities, and finish reason of every choice, and the prompt's report."""
    chunks = [chunk async for chunk in engine.generate(request)]
    choices = []
    for index in range(request.sampling.n):
        mine = [chunk for chunk in chunks if chunk.index == index]
        entries = [entry for chunk in mine for entry in chunk.logprobs]
        choices.append(
            SimpleNamespace(
                text="".join(chunk.text for chunk in mine),
                entries=entries,
                data=b"".join(bytes(entry.bytes) for entry in entries),
                finish_reason=mine[-1].finish_reason,
                chunks=mine,
            )
        )
    return SimpleNamespace(prompt=chunks[0].prompt, choices=choices, **vars(choices[0]))


def same(text, shown):
    """Equal, or the text ends in a character that is not complete, which is not shown."""
    return text.startswith(shown) and text[len(shown) :] in ("", "\ufffd", "\ufffd\ufffd")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
async def test_greedy_answers_are_those_of_transformers_generate(served, blocks, sizes):
    images = [blocks(*size, seed=i) for i, size in enumerate(sizes)]
    for question in QUESTIONS:
        expected = served.specimen.generate(question, images)
        got = await answered(served.engine, ask(question, images))
        assert got.prompt.prompt_tokens == served.specimen.inputs(question, images)["input_ids"].shape[1]
        expected = [token for token in expected if token not in served.specimen.eos_ids]
        vocabulary = vocabulary_of(served.specimen.tokenizer)
        assert [bytes(entry.bytes) for entry in got.entries] == [
            data for token in expected if (data := vocabulary.bytes_of(token))
        ]
        text = served.specimen.text(expected)
        assert same(text, got.text) or "\ufffd" in text
        assert same(got.data.decode(errors="replace"), got.text)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["text.png", "rocket.jpg"])
async def test_greedy_answers_about_photographs_are_those_of_transformers_generate(served, name):
    image = photograph(name)
    image.thumbnail((400, 400))  # as wide as it was, without the time that a large one takes
    expected = [t for t in served.specimen.generate(QUESTIONS[0], [image]) if t not in served.specimen.eos_ids]
    got = await answered(served.engine, ask(QUESTIONS[0], [image]))
    vocabulary = vocabulary_of(served.specimen.tokenizer)
    assert [bytes(entry.bytes) for entry in got.entries] == [
        data for token in expected if (data := vocabulary.bytes_of(token))
    ]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_budget_of_all_tokens_is_the_unpruned_model(served, blocks):
    image = blocks(500, 300)
    whole = await answered(served.engine, ask(QUESTIONS[0], [image]))
    kept = await answered(served.engine, ask(QUESTIONS[0], [image], pruning={"keep_tokens": 10**6}))
    assert (kept.text, kept.data) == (whole.text, whole.data)
    assert kept.prompt.prompt_tokens == whole.prompt.prompt_tokens


@pytest.mark.asyncio(loop_scope="module")
async def test_mixed_requests_together_answer_as_each_does_alone(served, blocks):
    policies = [{}, {"keep_tokens": 64}, {"keep_ratio": 0.1, "method": "random"}, {"keep_tokens": 9}]
    samplings = [{}, {"temperature": 0.9, "seed": 3}, {"n": 2, "seed": 4, "temperature": 1.3}, {"top_logprobs": 5}]
    requests = [
        ask(
            QUESTIONS[i % 3],
            [blocks(200 + 60 * (i % 4), 320, seed=i)] if i % 5 else [],
            pruning=policies[i % 4] if i % 5 else {},
            **samplings[(i // 2) % 4],
        )
        for i in range(10)
    ]
    together = await asyncio.gather(*(answered(served.engine, request) for request in requests))
    for request, batched in zip(requests, together, strict=True):
        alone = await answered(served.engine, request)
        assert [(c.text, c.data) for c in batched.choices] == [(c.text, c.data) for c in alone.choices]
        assert batched.prompt.prompt_tokens == alone.prompt.prompt_tokens


@pytest.mark.asyncio(loop_scope="module")
async def test_sampled_answers_of_any_token_have_the_bytes_of_their_log_probabilities(served):
    """A hot sample of random weights draws from everything: special tokens, bytes, ids beyond the tokenizer's."""
    sampling = {"temperature": 50.0, "max_tokens": 40, "ignore_eos": True, "top_logprobs": 2}
    requests = [ask(QUESTIONS[0], seed=seed, **sampling) for seed in range(4)]
    for got in await asyncio.gather(*(answered(served.engine, request) for request in requests)):
        assert same(got.data.decode(errors="replace"), got.text)
        for chunk in got.chunks[:-1]:
            assert not (chunk.logprobs and not chunk.text)
        assert all(len(entry.top) == 2 for entry in got.entries)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_stop_string_takes_its_tokens_log_probabilities_with_it(served):
    sampling = {"temperature": 5.0, "seed": 2, "max_tokens": 40, "ignore_eos": True}
    whole = await answered(served.engine, ask(QUESTIONS[0], **sampling))
    starts = {}
    for entry in whole.entries:
        starts.setdefault(bytes(entry.bytes).decode(errors="replace"), len(starts))
    for stop in [text for text in starts if len(text) > 1 and "\ufffd" not in text][3:12]:
        got = await answered(served.engine, ask(QUESTIONS[0], stop=(stop,), **sampling))
        assert got.finish_reason == "stop"
        assert got.text == whole.text[: whole.text.index(stop)]
        data = got.data.decode(errors="replace")
        assert data.startswith(got.text)
        if data != got.text:  # the stop string begins inside the last token
            assert len(data) - len(bytes(got.entries[-1].bytes).decode(errors="replace")) < len(got.text)


@pytest.fixture(scope="module")
def client(specimen):
    settings = Settings(model=str(specimen.path), served_model_name="zoo", threads=1, clip_model="none")
    with TestClient(create_app(settings)) as client:
        yield client


def asked_both_ways(client, body):
    """The whole answer, and the events of the streamed one."""
    whole = client.post("/v1/chat/completions", json=body).json()
    streamed = client.post("/v1/chat/completions", json=body | {"stream": True}).text
    return whole, [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n\n")[:-2]]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 2, "seed": 5, "n": 2}], ids=["greedy", "hot"])
def test_over_http_streaming_equals_not_streaming(client, blocks, sampling):
    buffer = io.BytesIO()
    blocks(300, 200).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTIONS[1]}]
    body = {"model": "zoo", "messages": [{"role": "user", "content": content}], "max_tokens": 20, "ignore_eos": True}
    body |= {"logprobs": True, "top_logprobs": 3, "vision_pruning": {"keep_tokens": 40}} | sampling
    whole, events = asked_both_ways(client, body)
    for choice in whole["choices"]:
        mine = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        streamed = [entry for c in mine if c["logprobs"] for entry in c["logprobs"]["content"]]
        assert streamed == choice["logprobs"]["content"]
        data = b"".join(bytes(entry["bytes"]) for entry in streamed)
        assert same(data.decode(errors="replace"), choice["message"]["content"])
    assert whole["usage"]["completion_tokens"] == 20 * len(whole["choices"])


def test_over_http_a_stop_string_ends_the_answer_before_it_streamed_or_not(client):
    body = {"model": "zoo", "messages": [{"role": "user", "content": QUESTIONS[2]}], "max_tokens": 30}
    body |= {"temperature": 2, "seed": 3, "ignore_eos": True}
    text = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    places = [place for place in range(4, len(text) - 3) if "\ufffd" not in text[place : place + 2]]
    for stop in {text[place : place + 2] for place in places[:: max(1, len(places) // 3)]}:
        whole, events = asked_both_ways(client, body | {"stop": [stop], "logprobs": True})
        [choice] = whole["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["message"]["content"] == text[: text.index(stop)]
        deltas = [c for event in events for c in event["choices"]]
        assert "".join(c["delta"].get("content", "") for c in deltas) == choice["message"]["content"]
        assert [entry for c in deltas if c["logprobs"] for entry in c["logprobs"]["content"]] == (
            choice["logprobs"]["content"]
        )
