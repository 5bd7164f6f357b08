"""The last moments of a server: not ready first, nothing new, what runs ends well, exit status 0."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from covervlm.server.app import Application
from covervlm.server.settings import Settings
from tests.server.api.clip_app import wait_for
from tests.server.api.scripted import ScriptedEngine, chat_body

SECONDS = 120


def test_a_draining_app_is_alive_but_not_ready_and_takes_nothing_new():
    engine = ScriptedEngine()
    application = Application(Settings(api_key=("secret",)), engine)
    with TestClient(application.app) as client:
        application.drain.begun = True
        assert client.get("/health").status_code == 200
        assert client.get("/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200
        for response in (
            client.get("/ready"),
            client.get("/v1/models"),
            client.post("/v1/chat/completions", json=chat_body("Hello")),
        ):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "engine_unavailable"
            assert int(response.headers["retry-after"]) > 0
            assert response.headers["connection"] == "close"
    assert engine.requests == []


@contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [str(Path(sys.executable).with_name("covervlm")), "serve", "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("covervlm serves "))
        yield process, line.rpartition(" ")[2].strip()
    finally:
        process.kill()
        process.wait(SECONDS)


def read_ready(client: httpx.Client) -> int:
    return client.get("/ready", headers={"Connection": "close"}).status_code


def test_on_sigterm_readiness_turns_false_before_anything_else_and_the_running_answer_is_finished():
    body = chat_body("Describe the image.", stream=True, max_tokens=600, ignore_eos=True)
    with served("--drain-seconds", "10") as (process, url), httpx.Client(base_url=url, timeout=SECONDS) as client:
        assert read_ready(client) == 200
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: read_ready(client) == 503)
            refused = client.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
            assert client.get("/health").status_code == 200
            events = [line.removeprefix("data: ") for line in lines if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_ends_the_drain_at_once(signals):
    with served("--drain-seconds", "100000") as (process, url), httpx.Client(base_url=url, timeout=SECONDS) as client:
        process.send_signal(signals[0])
        wait_for(lambda: read_ready(client) == 503)
        process.send_signal(signals[1])
        assert process.wait(SECONDS) != 0


def test_answers_that_take_longer_than_a_shutdown_may_are_cut_off_and_the_process_ends_well():
    body = chat_body("Describe the image.", stream=True, max_tokens=900, ignore_eos=True, n=16)
    with served("--shutdown-timeout", "1") as (process, url), httpx.Client(base_url=url, timeout=SECONDS) as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            seen = [next(lines)]
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(httpx.RemoteProtocolError):
                seen += list(lines)
        assert "data: [DONE]" not in seen
        assert process.wait(SECONDS) == 0
