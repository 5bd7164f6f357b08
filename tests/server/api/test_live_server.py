"""The openai package, unchanged, against a real server over the scripted engine."""

import asyncio
import json
import socket
import threading

import openai
import pytest

from covervlm.server import create_app
from covervlm.server.core.errors import EngineOverloaded
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.settings import Settings
from tests.server.api.live import live_server
from tests.server.api.scripted import Gate, ScriptedEngine, chat_body, prompt_report

SECONDS = 20


@pytest.fixture(scope="module")
def scripted():
    return ScriptedEngine()


@pytest.fixture(scope="module")
def url(scripted):
    with live_server(create_app(Settings(), scripted)) as url:
        yield url


@pytest.fixture
def script(scripted):
    """Sets the engine's script for one test."""
    usual = scripted.script
    yield lambda steps: setattr(scripted, "script", steps)
    scripted.script = usual


@pytest.fixture
def openai_client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def ask(*images, **fields):
    body = chat_body("What color is it?", *images)
    return {**body, **fields}


def test_a_whole_answer(openai_client, red_png):
    answer = openai_client.chat.completions.create(**ask(red_png), extra_body={"vision_pruning": {"keep_tokens": 64}})
    assert answer.choices[0].message.content == "a red circle"
    assert answer.usage.prompt_tokens_details.image_tokens == 64
    assert answer.vision_pruning["images"][0]["kept"] == 64


def test_a_stream(openai_client, red_png):
    stream = openai_client.chat.completions.create(**ask(red_png), stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "a red circle"
    assert chunks[-1].usage.completion_tokens == 3


def test_the_packages_own_stream_helper(openai_client):
    with openai_client.chat.completions.stream(**ask()) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "a red circle"
    assert final.choices[0].finish_reason == "stop"


async def test_asynchronous_whole_and_streamed(async_client, red_png):
    answer = await async_client.chat.completions.create(**ask(red_png))
    stream = await async_client.chat.completions.create(**ask(red_png), stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == answer.choices[0].message.content == "a red circle"


def test_the_models(openai_client):
    names = ["demo", "demo:192", "demo:64", "demo:16", "demo-clip"]
    assert [model.id for model in openai_client.models.list()] == names
    assert openai_client.models.retrieve("demo:64").id == "demo:64"
    assert openai_client.models.retrieve("demo-clip").id == "demo-clip"


def test_an_alias_prunes_without_extra_fields(openai_client, red_png):
    assert openai_client.chat.completions.create(**ask(red_png, model="demo:64")).usage.prompt_tokens == 74


def test_failures_are_the_packages_own_exceptions(openai_client, script):
    with pytest.raises(openai.BadRequestError) as bad:
        openai_client.chat.completions.create(**ask(), modalities=["text", "audio"])
    assert (bad.value.param, bad.value.code) == ("modalities", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.chat.completions.create(**ask(model="gpt-4o"))
    assert missing.value.code == "model_not_found"
    script(lambda request: [EngineOverloaded("Full.", retry_after=1)])
    with pytest.raises(openai.InternalServerError) as full:
        openai_client.chat.completions.create(**ask())
    assert (full.value.status_code, full.value.response.headers["retry-after"]) == (503, "1")


def test_an_overloaded_server_is_asked_again(url, script):
    answers = iter([[EngineOverloaded("Full.", retry_after=0)], [GenerationChunk(0, "ok", 1, (), "stop", None)]])
    script(lambda request: next(answers))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=1) as client:
        assert client.chat.completions.create(**ask()).choices[0].message.content == "ok"


def test_a_failure_on_the_way_ends_the_stream_with_an_exception(openai_client, script):
    script(lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), RuntimeError("bug")])
    seen = []
    with pytest.raises(openai.APIError, match="failed to answer"):  # noqa: PT012
        for chunk in openai_client.chat.completions.create(**ask(), stream=True):
            seen.append(chunk.choices[0].delta.content)
    assert seen == ["", "a"]


def test_the_first_token_arrives_before_the_second_is_made(openai_client, script):
    """Nothing between engine and client gathers events: the client opens the gate that holds the second token."""
    loop: asyncio.AbstractEventLoop | None = None
    gate: Gate | None = None

    def steps(request):
        nonlocal loop, gate
        loop, gate = asyncio.get_running_loop(), Gate()
        return [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), gate, GenerationChunk(0, "b", 1, (), "stop")]

    script(steps)
    texts = []
    for chunk in openai_client.chat.completions.create(**ask(), stream=True):
        texts.append(chunk.choices[0].delta.content)
        if texts[-1] == "a":
            loop.call_soon_threadsafe(gate.opened.set)
    assert texts == ["", "a", "b", None]


@pytest.mark.parametrize("stream", [False, True])
def test_closing_the_socket_cancels(url, scripted, script, monkeypatch, stream):
    name = f"gone-{stream}"
    reached, released = threading.Event(), threading.Event()
    monkeypatch.setattr(scripted, "on_release", lambda request_id: request_id == name and released.set())

    def steps(request):
        reached.set()
        return [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), Gate()]

    script(steps)
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(ask(stream=stream)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {name}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        assert reached.wait(SECONDS)
        assert not released.is_set()
    assert released.wait(SECONDS)
