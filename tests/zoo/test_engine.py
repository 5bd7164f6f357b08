"""The embedded engine on every checkpoint of the zoo answers as transformers does, also in company and streamed.

`tests/vllm/test_zoo.py` asks the same of vLLM's engine.
"""

import asyncio
import hashlib
from types import SimpleNamespace

import pytest
import pytest_asyncio

from covervlm.server.core.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    PruningPolicy,
    SamplingParams,
)
from covervlm.server.engines.detokenizer import vocabulary_of
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from tests.zoo.photographs import photograph

QUESTIONS = ["What is this?", "Wie heißt das Tier 🦜 in Zürich?", "これは何ですか\nThe  answer:"]
SIZES = {"no image": [], "one image": [(500, 300)], "two images": [(120, 400), (64, 64)]}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
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


@pytest.mark.asyncio(loop_scope="session")
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


@pytest.mark.asyncio(loop_scope="session")
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


@pytest.mark.asyncio(loop_scope="session")
async def test_a_budget_of_all_tokens_is_the_unpruned_model(served, blocks):
    image = blocks(500, 300)
    whole = await answered(served.engine, ask(QUESTIONS[0], [image]))
    kept = await answered(served.engine, ask(QUESTIONS[0], [image], pruning={"keep_tokens": 10**6}))
    assert (kept.text, kept.data) == (whole.text, whole.data)
    assert kept.prompt.prompt_tokens == whole.prompt.prompt_tokens


@pytest.mark.asyncio(loop_scope="session")
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


@pytest.mark.asyncio(loop_scope="session")
async def test_sampled_answers_of_any_token_have_the_bytes_of_their_log_probabilities(served):
    """A hot sample of random weights draws from everything: special tokens, bytes, ids beyond the tokenizer's."""
    sampling = {"temperature": 50.0, "max_tokens": 40, "ignore_eos": True, "top_logprobs": 2}
    requests = [ask(QUESTIONS[0], seed=seed, **sampling) for seed in range(4)]
    for got in await asyncio.gather(*(answered(served.engine, request) for request in requests)):
        assert same(got.data.decode(errors="replace"), got.text)
        for chunk in got.chunks[:-1]:
            assert not (chunk.logprobs and not chunk.text)
        assert all(len(entry.top) == 2 for entry in got.entries)


@pytest.mark.asyncio(loop_scope="session")
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
