"""A request that takes too long ends in the engine and with its caller, whichever stage it is in."""

import asyncio
import json
import socket
import threading

import openai
import pytest
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.settings import Settings
from tests.server.api.live import live_server
from tests.server.api.scripted import Gate, ScriptedEngine, chat_body, prompt_report

SECONDS = 20
LIMIT = 0.5
"""Seconds: short, but long enough for a first chunk on a busy machine."""
FIRST = "a"


def stuck(request):
    """Nothing comes."""
    return [Gate()]


def stuck_midway(request):
    return [GenerationChunk(0, FIRST, 1, prompt=prompt_report(request)), Gate()]


@pytest.fixture
def engine():
    return ScriptedEngine(stuck)


@pytest.fixture
def client(engine):
    with TestClient(create_app(Settings(request_timeout=LIMIT), engine)) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/prune"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_is_a_504_and_leaves_the_engine(client, engine, path, stream):
    response = client.post(path, json=chat_body("Hello", stream=stream))
    assert response.status_code == 504
    assert response.json()["error"] == {
        "message": f"The request was not answered within {LIMIT} seconds.",
        "type": "server_error",
        "param": None,
        "code": "request_timeout",
    }
    assert response.headers["x-request-id"] in engine.released


def test_a_whole_answer_that_has_begun_is_a_504_too(client, engine):
    engine.script = stuck_midway
    assert client.post("/v1/chat/completions", json=chat_body("Hello")).status_code == 504
    assert len(engine.released) == 1


def test_a_stream_that_has_begun_ends_with_the_error_as_its_last_event(client, engine):
    engine.script = stuck_midway
    response = client.post("/v1/chat/completions", json=chat_body("Hello", stream=True))
    assert response.status_code == 200
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line]
    assert events[-2]["choices"][0]["delta"]["content"] == FIRST
    assert events[-1]["error"]["code"] == "request_timeout"
    assert "[DONE]" not in response.text
    assert len(engine.released) == 1


def test_the_openai_client_raises_what_it_raises_for_servers_that_are_too_slow(engine):
    engine.script = stuck_midway
    with (
        live_server(create_app(Settings(request_timeout=LIMIT), engine)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as late:
            client.chat.completions.create(**chat_body("Hello"))
        assert (late.value.status_code, late.value.code) == (504, "request_timeout")
        with pytest.raises(openai.APIError, match="not answered within"):
            list(client.chat.completions.create(**chat_body("Hello"), stream=True))


def test_a_request_may_be_more_impatient_than_the_server_but_not_more_patient(engine):
    with TestClient(create_app(Settings(request_timeout=0.5), engine)) as client:
        for wish, limit in [("0.05", "0.05"), ("1e9", "0.5")]:
            response = client.post("/v1/chat/completions", json=chat_body("Hello"), headers={"X-Request-Timeout": wish})
            assert response.status_code == 504
            assert f"within {limit} seconds" in response.json()["error"]["message"]


@pytest.mark.parametrize("wish", ["", "soon", "0", "-1", "nan", "inf", "1s"])
def test_a_header_that_is_no_time_is_refused(client, engine, wish):
    response = client.post("/v1/chat/completions", json=chat_body("Hello"), headers={"X-Request-Timeout": wish})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_value")
    assert engine.requests == []


def test_what_is_answered_in_time_is_not_touched():
    with TestClient(create_app(Settings(request_timeout=SECONDS), ScriptedEngine())) as client:
        text = client.post("/v1/chat/completions", json=chat_body("Hello", stream=True)).text
    assert text.endswith("data: [DONE]\n\n")


def test_a_client_that_does_not_read_is_cut_off_and_leaves_the_engine(engine):
    """It reads a byte and then nothing, while the answer fills every buffer between server and client."""
    released = threading.Event()
    engine.on_release = lambda request_id: released.set()
    engine.script = lambda request: [
        GenerationChunk(0, "a", 1, prompt=prompt_report(request)),
        *[GenerationChunk(0, "b" * 2**20, 1)] * 64,
        Gate(),
    ]
    settings = Settings(send_timeout=0.2, log_level="error")
    with live_server(create_app(settings, engine), settings) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps(chat_body("Hello", stream=True)).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert connection.recv(1)
            assert released.wait(SECONDS)


async def test_one_who_does_not_read_gets_no_error_event_to_wait_for(engine):
    """The stream stands in `send` when its time is over; the request ends all the same."""
    engine.script = lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request))] * 9
    app = create_app(Settings(request_timeout=LIMIT), engine)
    body = json.dumps(chat_body("Hello", stream=True)).encode()
    incoming = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent = []

    async def send(message):
        sent.append(message)
        if len(sent) == 3:
            await asyncio.Event().wait()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    async with asyncio.timeout(SECONDS):
        await app(scope, incoming.get, send)
    assert len(sent) == 3
    assert len(engine.released) == 1
