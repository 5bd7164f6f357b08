"""vLLM on published checkpoints' tokenizers and templates: the same texts, counts and answers as the embedded engine.

What depends on a tokenizer or an architecture, for every checkpoint of the zoo that the plugin serves.
"""

import asyncio
import base64
import hashlib
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from conftest import Engines
from jsonschema import Draft202012Validator
from vllm import SamplingParams as VllmSamplingParams

from covervlm.server import create_app
from covervlm.server.core.caller import Caller
from covervlm.server.core.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    PruningPolicy,
    SamplingParams,
    TextPrompt,
)
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.engines.vllm.engine import VllmEngine, VllmEngineConfig
from covervlm.server.engines.vllm.plugin import ARCHITECTURES
from covervlm.server.settings import Settings
from tests.zoo.checkpoints import ZOO
from tests.zoo.conftest import Specimen
from tests.zoo.photographs import photograph

SPACED = [name for name in ZOO if ZOO[name].vocabulary == "llama_2"]
"""Their tokenizers are SentencePiece's: a word's space is the beginning of its token."""

QUESTIONS = ["What is this?", "Wie heißt das Tier 🦜 in Zürich?", "これは何ですか", "Count.", "Why  not?"]
BUDGETS: dict[str, dict[str, Any]] = {
    "whole": {},
    "pruned": {"keep_tokens": 40},
    "pruned by a share": {"keep_ratio": 0.1, "method": "divprune"},
}
SCHEMA = {
    "type": "object",
    "properties": {"é": {"enum": ["日本", "a b"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["é", "n"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Zoo(Engines):
    """Both engines on a checkpoint, and the checkpoint as transformers alone runs it."""

    specimen: Specimen


@pytest_asyncio.fixture(scope="session", params=ZOO)
async def zoo(request, tmp_path_factory):
    """vLLM's attention on a CPU has no heads narrower than 32. Whole prompts are read: equal ones are so bit by bit."""
    path = tmp_path_factory.mktemp(request.param)
    ZOO[request.param].save(path, hidden_size=128)
    options = "--enforce-eager --max-model-len 4096 --no-enable-prefix-caching"
    vllm = VllmEngine(VllmEngineConfig(str(path), vllm_args=options))
    await vllm.start()
    reference = TransformersEngine(TransformersEngineConfig(str(path), threads=1))
    await reference.start()
    yield Zoo(path, vllm, reference, Specimen(request.param, path))
    await vllm.stop()
    await reference.stop()


@pytest_asyncio.fixture
async def client(zoo):
    """The app around the engine that other tests use too, so its lifespan, which would stop it, is left out."""
    settings = Settings(engine="vllm", served_model_name="zoo", clip_model="none")
    transport = httpx.ASGITransport(create_app(settings, zoo.vllm))
    async with httpx.AsyncClient(transport=transport, base_url="http://covervlm", timeout=120) as client:
        yield client


def ask(prompt, *images, pruning=None, **sampling):
    """prompt: a question, or one of the core's prompts."""
    parts = [ImagePart(i, hashlib.sha256(repr(i.size).encode() + i.tobytes()).hexdigest()) for i in images]
    prompt = (Message("user", (*parts, prompt)),) if isinstance(prompt, str) else prompt
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 16, "logprobs": True, "ignore_eos": True} | sampling)
    return GenerationRequest("test", prompt, params, PruningPolicy(**pruning or {}))


def data(answer):
    return b"".join(bytes(entry.bytes) for chunk in answer.chunks for entry in chunk.logprobs)


def ids(answer):
    return [token for chunk in answer.chunks for token in chunk.token_ids]


def same(text, shown):
    """Equal, or the text ends in a character that is not complete, which is not shown."""
    return text.startswith(shown) and text[len(shown) :] in ("", "\ufffd", "\ufffd\ufffd")


def test_every_architecture_of_the_plugin_is_here():
    served = {ZOO[name].model.__name__.removesuffix("_mistral").removesuffix("_llama_3") for name in ZOO}
    assert len(served) == len(ARCHITECTURES)


async def test_both_engines_stream_the_same_text_with_the_space_before_the_first_word(zoo, answer):
    first = []
    for question in QUESTIONS:
        mine, theirs = [await answer(engine, ask(question)) for engine in (zoo.vllm, zoo.reference)]
        assert mine.text == theirs.text
        assert data(mine) == data(theirs)
        assert [token for token, _ in mine.logprobs] == [token for token, _ in theirs.logprobs]
        assert same(data(mine).decode(errors="replace"), mine.text)
        first.append(mine.text[:1])
    assert " " in first or zoo.specimen.name not in SPACED


@pytest.mark.parametrize("engine", ["vllm", "reference"])
async def test_a_stop_string_takes_its_tokens_log_probabilities_with_it(zoo, answer, engine):
    engine = getattr(zoo, engine)
    whole = await answer(engine, ask(QUESTIONS[0]))
    for word in [token for token, _ in whole.logprobs if len(token) > 1 and "\ufffd" not in token][2:6]:
        got = await answer(engine, ask(QUESTIONS[0], stop=(word,)))
        assert got.text == whole.text[: whole.text.index(word)]
        assert data(got).decode(errors="replace").startswith(got.text)
        assert len(got.logprobs) <= [token for token, _ in whole.logprobs].index(word)


async def test_text_is_what_vllm_itself_answers(zoo, answer):
    """With the space before the first word, which a SentencePiece tokenizer's decoder drops without the prompt."""
    llm, tokenizer = zoo.vllm._llm, zoo.specimen.tokenizer
    params = VllmSamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    first = []
    for number, question in enumerate(QUESTIONS):
        prompt = zoo.specimen.inputs(question)["input_ids"][0].tolist()
        async for output in llm.generate({"prompt_token_ids": prompt}, params, f"own-{number}"):
            whole = output.outputs[0]
        got = await answer(zoo.vllm, ask(question))
        assert ids(got) == list(whole.token_ids)
        assert got.text == whole.text or "\ufffd" in whole.text
        first.append(whole.text[:1])
        decoded = tokenizer.decode(whole.token_ids, skip_special_tokens=True)
        assert decoded in (whole.text, whole.text[1:]) or "\ufffd" in decoded
    assert " " in first or zoo.specimen.name not in SPACED


async def test_hot_samples_have_the_bytes_of_their_text(zoo, answer):
    sampling = {"temperature": 2.0, "frequency_penalty": 2.0, "max_tokens": 60, "top_logprobs": 2}
    asked = [ask(QUESTIONS[0], seed=seed, **sampling) for seed in range(6)]
    for got in await asyncio.gather(*(answer(zoo.vllm, request) for request in asked)):
        assert same(data(got).decode(errors="replace"), got.text)


def random_ids(zoo) -> Iterator[tuple[int, ...]]:
    """Words, bytes in no order and special tokens, all but those that stand for pictures."""
    dice = random.Random(0)
    kept_out = set(zoo.vllm._prompts.chat.placeholders.values())
    usable = [token for token in range(len(zoo.specimen.tokenizer)) if token not in kept_out]
    while True:
        yield tuple(dice.choice(usable) for _ in range(dice.randint(1, 40)))


async def test_random_ids_are_read_answered_and_written_alike(zoo, answer):
    prompts = [prompt for prompt, _ in zip(random_ids(zoo), range(40), strict=False)]
    asked = [ask(TextPrompt(prompt), max_tokens=4, prompt_logprobs=1) for prompt in prompts]
    mine, theirs = [
        await asyncio.gather(*(answer(engine, request) for request in asked)) for engine in (zoo.vllm, zoo.reference)
    ]
    for prompt, one, other in zip(prompts, mine, theirs, strict=True):
        assert tuple(one.prompt.token_ids) == tuple(other.prompt.token_ids) == prompt
        assert [entry.bytes for entry in one.prompt.logprobs] == [entry.bytes for entry in other.prompt.logprobs]
        assert same(data(one).decode(errors="replace"), one.text)
        assert (ids(one), one.text, data(one)) == (ids(other), other.text, data(other))
        assert await zoo.vllm.detokenize(prompt, Caller()) == zoo.specimen.tokenizer.decode(prompt)


def pictures(count):
    """Photographs, in which hardly two patches are alike: which of equals is kept is chance."""
    found = [photograph(name) for name in ("rocket.jpg", "coffee.png")[:count]]
    for picture, size in zip(found, (300, 120), strict=False):
        picture.thumbnail((size, size))
    return found


@pytest.mark.parametrize("budget", BUDGETS)
async def test_answers_about_pictures_are_those_of_the_embedded_engine(zoo, answer, budget):
    for number, question in enumerate(QUESTIONS[:2], start=1):
        policy = BUDGETS[budget] | {"return_indices": True}
        request = ask(question, *pictures(number), pruning=policy, ignore_eos=False)
        mine, theirs = [await answer(engine, request) for engine in (zoo.vllm, zoo.reference)]
        assert mine.prompt.prompt_tokens == theirs.prompt.prompt_tokens
        assert [image.kept for image in mine.prompt.images] == [image.kept for image in theirs.prompt.images]
        assert [image.indices for image in mine.prompt.images] == [image.indices for image in theirs.prompt.images]
        assert (ids(mine), mine.text) == (ids(theirs), theirs.text)
        if not BUDGETS[budget]:
            assert mine.prompt.prompt_tokens == zoo.specimen.inputs(question, pictures(number))["input_ids"].shape[1]


async def said(client, **fields):
    """An answer's choice, which the stream of the same request tells as well."""
    body = {"model": "zoo", "temperature": 1.5, "seed": 7, "max_tokens": 500} | fields
    whole = await client.post("/v1/chat/completions", json=body)
    assert whole.status_code == 200, whole.text
    [choice] = whole.json()["choices"]
    streamed = await client.post("/v1/chat/completions", json=body | {"stream": True})
    events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: {")]
    deltas = [each["delta"] for event in events for each in json.loads(event)["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == (choice["message"]["content"] or "")
    calls = [call["function"].get("arguments") or "" for delta in deltas for call in delta.get("tool_calls") or ()]
    assert "".join(calls) == "".join(call["function"]["arguments"] for call in choice["message"].get("tool_calls", ()))
    return choice


@pytest.fixture
def question():
    buffer = io.BytesIO()
    pictures(1)[0].save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTIONS[1]}]
    return [{"role": "user", "content": content}]


async def test_answers_of_a_schema_have_it_streamed_or_not(client, question):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    choice = await said(client, messages=question, response_format=form, logprobs=True)
    assert choice["finish_reason"] == "stop"
    text = choice["message"]["content"]
    Draft202012Validator(SCHEMA).validate(json.loads(text))
    assert b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"]).decode() == text


async def test_calls_that_must_be_are_made_streamed_or_not(client, question):
    look = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
    named = {"type": "function", "function": {"name": "look"}}
    choice = await said(client, messages=question, tools=[look], tool_choice=named, vision_pruning={"keep_tokens": 9})
    [call] = choice["message"]["tool_calls"]
    Draft202012Validator(SCHEMA).validate(json.loads(call["function"]["arguments"]))
