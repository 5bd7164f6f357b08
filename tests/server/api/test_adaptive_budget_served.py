"""--adaptive-budget over HTTP: who gets a budget by load, who does not, and where it shows."""

import time

import numpy as np
import pytest
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.core.engine import EngineStats
from covervlm.server.forecast.history import History
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine, chat_body
from tests.server.forecast.traffic import minutes


class Queued(ScriptedEngine):
    """A scripted engine with a queue of the test's choice."""

    waiting = 0

    def stats(self):
        return EngineStats(waiting=self.waiting)


@pytest.fixture
def engine():
    return Queued()


@pytest.fixture
def client(engine):
    with TestClient(create_app(Settings(adaptive_budget="64:192", max_running=32), engine)) as client:
        yield client


def served(client, body):
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["vision_pruning"]


def gauge(client):
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("covervlm_adaptive_budget_tokens ")).split()[1])


def test_the_budget_follows_the_queue_and_shows_in_answer_and_metrics(client, engine, red_png):
    for waiting, budget in [(0, 192), (8, 111), (16, 64), (200, 64), (13, 64), (12, 84), (0, 192)]:
        engine.waiting = waiting
        report = served(client, chat_body("What?", red_png))
        assert (report["adaptive"], report["images"][0]["kept"]) == (True, budget)
        assert engine.requests[-1].pruning.keep_tokens == budget
        assert gauge(client) == budget


def test_the_gauge_recovers_without_another_request(client, engine, red_png):
    engine.waiting = 100
    served(client, chat_body("What?", red_png))
    engine.waiting = 0
    assert gauge(client) == 192


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"vision_pruning": {"keep_tokens": 300}}, 300),
        ({"vision_pruning": {"keep_ratio": 0.5}}, 288),
        ({"vision_pruning": {"coverage": 0.9}}, 576),
        ({"vision_pruning": {"method": "none"}}, 576),
        ({"model": "demo:16"}, 16),
    ],
)
def test_an_explicit_budget_is_never_changed(client, engine, red_png, fields, kept):
    engine.waiting = 200
    report = served(client, chat_body("What?", red_png) | fields)
    assert "adaptive" not in report
    assert report["images"][0]["kept"] == kept


def test_a_method_without_a_budget_keeps_its_name_and_gets_the_budget(client, engine, red_png):
    served(client, chat_body("What?", red_png, vision_pruning={"method": "uniform"}))
    assert (engine.requests[-1].pruning.method, engine.requests[-1].pruning.keep_tokens) == ("uniform", 192)


def test_streams_and_prune_tell_of_it_too(client, engine, red_png):
    engine.waiting = 16
    assert '"adaptive":true' in client.post("/v1/chat/completions", json=chat_body("W", red_png, stream=True)).text
    answer = client.post("/v1/prune", json=chat_body("W", red_png)).json()
    assert (answer["adaptive"], answer["images"][0]["kept"]) == (True, 64)


def test_without_the_option_nothing_of_it_shows(engine, red_png):
    client = TestClient(create_app(Settings(keep_tokens=192), engine))
    engine.waiting = 200
    report = served(client, chat_body("What?", red_png))
    assert ("adaptive" not in report, report["images"][0]["kept"]) == (True, 192)
    assert "covervlm_adaptive_budget" not in client.get("/metrics").text


def test_a_foreseen_peak_lowers_the_budget_before_anybody_waits(engine, red_png, tmp_path):
    """The past says that every hour of the day brings 1.4 times of what made others wait."""
    now = int(time.time() // 3600)
    counts = np.tile(np.where(np.arange(24) % 2, 640.0, 645.0), 7)
    counts[::40] = 450
    history = History(tmp_path)
    history.write(minutes(counts, first=now - len(counts), bearable=400), now=now * 60)
    history.close()
    for anticipate, kept in [(False, 192), (True, 84)]:
        settings = Settings(adaptive_budget="64:192", anticipate=anticipate, data_dir=tmp_path, clip_model="none")
        with TestClient(create_app(settings, engine)) as client:
            assert 440 < client.get("/v1/forecast").json()["bearable"] < 460
            assert served(client, chat_body("What?", red_png))["images"][0]["kept"] == kept
            assert gauge(client) == kept
            engine.waiting = 16
            assert served(client, chat_body("What?", red_png))["images"][0]["kept"] == 64
            engine.waiting = 0
