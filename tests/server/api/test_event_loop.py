"""The event loop stays free: what takes long is found by the tests' own watch, and large bodies are no such thing."""

import asyncio
import json
import time

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from covervlm.server.api import body
from tests.server.api.scripted import chat_body
from tests.server.api.slow_callbacks import LIMIT

LARGE = body.LARGE_BODY


def busy(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize(("seconds", "found"), [(0.1, 1), (0.0, 0)])
def test_a_handler_that_blocks_the_loop_is_found(slow_callbacks, seconds, found):
    app = FastAPI()

    @app.get("/")
    async def handler():
        busy(seconds)
        await asyncio.sleep(0)

    TestClient(app).get("/")
    assert len(slow_callbacks) == found
    assert all(".handler" in entry for entry in slow_callbacks)
    slow_callbacks.clear()  # or the test would fail, as any other does


def test_waiting_and_the_work_of_threads_are_no_work_of_the_loop(slow_callbacks):
    app = FastAPI()

    @app.get("/")
    def handler():
        busy(2 * LIMIT)

    @app.get("/sleep")
    async def sleep():
        time.sleep(2 * LIMIT)

    TestClient(app).get("/")
    TestClient(app).get("/sleep")
    assert slow_callbacks == []


def post(client, content):
    return client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(chat_body("Hello")),
        json.dumps(chat_body("Hello", temperature="hot")),
        json.dumps(chat_body("Hello", unknown=1)),
        json.dumps(chat_body("Hello", nobody=[1])).replace('"model"', '"Model"'),
        json.dumps(chat_body("\ud800")),
        json.dumps([1, 2]),
        json.dumps(chat_body("Hello")).replace(":", ";", 1),
        json.dumps(chat_body("Hello")).replace("Hello", "Hel\nlo"),
        json.dumps(chat_body("Hello")).replace('"Hello"', "NaN"),
        "[" * 2000,
        "1" * 5000,
    ],
)
def test_a_large_body_is_answered_as_the_same_small_one(client, engine, content):
    small, large = post(client, content), post(client, content + " " * LARGE)
    assert large.status_code == small.status_code
    if small.status_code == 200:
        assert large.json()["choices"] == small.json()["choices"]
        assert engine.requests[0].messages == engine.requests[1].messages
    else:
        assert large.json() == small.json()


def test_a_large_body_that_is_not_utf_8_is_answered_as_a_small_one(client):
    content = json.dumps(chat_body("Hello")).encode().replace(b"Hello", b"\xff")
    assert post(client, content + b" " * LARGE).json() == post(client, content).json()


def test_a_large_body_is_checked_in_a_thread_and_a_small_one_at_once(client, monkeypatch):
    plain, checked = body.asyncio.to_thread, []

    async def to_thread(work, *args):
        checked.append(work.__name__)
        return await plain(work, *args)

    monkeypatch.setattr(body.asyncio, "to_thread", to_thread)
    content = json.dumps(chat_body("Hello"))
    post(client, content)
    assert checked == []
    post(client, content + " " * LARGE)
    assert checked == ["join", "checked"]


@pytest.mark.parametrize(
    "content",
    ["word " * 4_000_000, [{"type": "text", "text": f"part {i}"} for i in range(10_000)]],
    ids=["long text", "many parts"],
)
@pytest.mark.parametrize("role", ["user", "system"])
def test_what_takes_its_time_to_check_keeps_nobody_waiting(client, slow_callbacks, content, role):
    content = json.dumps({"model": "demo", "messages": [{"role": role, "content": content}]})
    assert post(client, content).status_code == 200
    assert slow_callbacks == []
