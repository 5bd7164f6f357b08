"""vLLM's own server with the plugin installed, and nothing else of ours in it."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest
import pytest_asyncio
from chat_bodies import QUESTIONS, body

from covervlm.server.demo import model_path
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig

WHOLE = {"method": "none"}
LOADED = re.compile(r"^\(([A-Za-z]+)\S* pid=\d+\) INFO .*covervlm \S+ prunes images in this process", re.MULTILINE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Its socket and its log. It keeps 160 tokens of images where a request says nothing."""
    folder = tmp_path_factory.mktemp("vllm")
    socket, log = folder / "socket", folder / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path())]
    command += ["--served-model-name", "demo", "--uds", str(socket), "--dtype", "float32", "--enforce-eager"]
    command += ["--trust-request-mm-kwargs", "--hf-overrides", json.dumps({"vision_prune": {"keep_tokens": 160}})]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://vllm") as client:
            while not answers(client):
                assert process.poll() is None, log.read_text()[-4000:]
                time.sleep(0.5)
        yield socket, log
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def answers(client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest_asyncio.fixture(scope="module")
async def client(server):
    transport = httpx.AsyncHTTPTransport(uds=str(server[0]), limits=httpx.Limits(max_connections=40))
    async with httpx.AsyncClient(transport=transport, base_url="http://vllm", timeout=120) as client:
        yield client


def pruned(numbers, question, option=None, **fields):
    """The demo's template leaves the first token to the tokenizer; vLLM's chats have none unless they ask for it."""
    given = {} if option is None else {"mm_processor_kwargs": {"vision_prune": option}}
    return body(numbers, question, add_special_tokens=True, **given, **fields)


async def ask(client, *arguments, **fields):
    """Text and prompt tokens."""
    response = await client.post("/v1/chat/completions", json=pruned(*arguments, **fields))
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"], response.json()["usage"]["prompt_tokens"]


async def test_64_of_576_tokens_are_512_fewer_prompt_tokens(client):
    _, whole = await ask(client, [1], QUESTIONS[0], WHOLE)
    _, pruned = await ask(client, [1], QUESTIONS[0], {"keep_tokens": 64})
    assert whole - pruned == 512


async def test_hf_overrides_prune_where_a_request_says_nothing(client):
    _, whole = await ask(client, [1], QUESTIONS[0], WHOLE)
    _, pruned = await ask(client, [1], QUESTIONS[0])
    assert whole - pruned == 576 - 160


async def test_the_plugin_is_loaded_in_every_process(server):
    """Engine and workers say so. The first process loads plugins before it logs; it made the placeholders fewer."""
    assert set(LOADED.findall(server[1].read_text())) == {"EngineCore", "VllmWorker"}


async def test_30_mixed_concurrent_requests_are_answered_as_by_the_transformers_engine(client, ask_for, answer):
    options = [WHOLE, {"keep_tokens": 64}, {"keep_tokens": 16, "method": "vision_coverage"}, {"keep_ratio": 0.1}]
    cases = [((number,), QUESTIONS[number % 3], options[number % 4]) for number in range(26)]
    cases += [((number, number + 1), QUESTIONS[0], {"keep_tokens": [32, 8]}) for number in range(4)]
    got = await asyncio.gather(*(ask(client, *case) for case in cases))
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), threads=1))
    await engine.start()
    try:
        wanted = [await answer(engine, ask_for(*case)) for case in cases]
    finally:
        await engine.stop()
    assert [tokens for _, tokens in got] == [one.prompt.prompt_tokens for one in wanted]
    assert [text for text, _ in got] == [one.text for one in wanted]


@pytest.fixture(scope="module")
def ask_for(ask):
    def make(numbers, question, option):
        counts = option.get("keep_tokens")
        pruning = option | ({"keep_tokens": tuple(counts)} if isinstance(counts, list) else {})
        return ask(numbers, question, pruning=pruning)

    return make


async def test_the_image_is_cached_by_what_is_kept_of_it(client):
    async def hits(number, question, option):
        before = await metric(client, "vllm:mm_cache_hits_total")
        await ask(client, [number], question, option)
        return await metric(client, "vllm:mm_cache_hits_total") - before

    assert await hits(90, QUESTIONS[0], {"keep_tokens": 64}) == 0
    assert await hits(90, QUESTIONS[1], {"keep_tokens": 64}) == 0  # another question, another selection
    assert await hits(90, QUESTIONS[0], {"keep_tokens": 65}) == 0
    assert await hits(90, QUESTIONS[0], {"keep_tokens": 64}) == 1  # the first once more
    assert await hits(90, QUESTIONS[0], {"keep_tokens": 64, "method": "vision_coverage"}) == 0
    assert await hits(90, QUESTIONS[1], {"keep_tokens": 64, "method": "vision_coverage"}) == 1  # reads no question


async def test_the_words_of_the_last_user_turn_guide_the_selection(client):
    """The same selection, as the cache shows, whatever was said before and however the template wraps it."""
    turns = [
        {"role": "user", "content": QUESTIONS[2]},
        {"role": "assistant", "content": "yes"},
    ]
    await ask(client, [91], QUESTIONS[0], {"keep_tokens": 64})
    before = await metric(client, "vllm:mm_cache_hits_total")
    last = body([91], QUESTIONS[0])["messages"]
    await ask(client, [91], QUESTIONS[0], {"keep_tokens": 64}, messages=[*turns, *last])
    assert await metric(client, "vllm:mm_cache_hits_total") - before == 1


async def metric(client, name) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"keep_tokens": 0}, "keep_tokens"),
        ({"keep_ratio": 1.5}, "keep_ratio"),
        ({"keep_tokens": [1, 2]}, "2 counts for 1 images"),
        ({"keep_tokens": 64, "keep_ratio": 0.1}, "set one"),
        ({"keep_tokens": 64, "method": "best"}, "best"),
        ({"coverage": 0.9}, "coverage budgets are not possible under vLLM"),
        ({"keep": 64}, "not an option of pruning"),
        (64, "should be an object"),
    ],
)
async def test_bad_budgets_are_answered_with_400_and_the_reason(client, option, reason):
    response = await client.post("/v1/chat/completions", json=pruned([1], QUESTIONS[0], option))
    assert response.status_code == 400
    assert reason in response.json()["error"]["message"]
