"""GET /v1/forecast and its gauges: what counts as demand, and what is told before and after enough is known."""

import time

import pytest
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.forecast.history import History
from covervlm.server.settings import Settings
from tests.server.api.scripted import chat_body
from tests.server.api.test_metrics import samples
from tests.server.forecast.traffic import daily, minutes

WEEKS = 5 * 168


def served(engine, folder, **settings):
    return TestClient(create_app(Settings(data_dir=folder, clip_model="none", **settings), engine))


def counted(folder):
    history = History(folder)
    (total,) = history._db.execute("SELECT sum(requests) FROM minutes").fetchone()
    history.close()
    return total


def test_a_fresh_server_says_how_much_it_needs_and_shows_no_gauges(engine, tmp_path):
    with served(engine, tmp_path) as client:
        answer = client.get("/v1/forecast").json()
        assert not any("forecast" in name or "bearable" in name for name, *_ in samples(client))
    assert answer.pop("created") % 3600 == 0
    assert answer == {
        "object": "forecast",
        "observed_hours": 0,
        "needed_hours": 72,
        "seasons": [],
        "bearable": None,
        "peak": None,
        "data": [],
    }


def test_weeks_of_traffic_become_a_day_ahead_in_route_and_gauges(engine, tmp_path):
    now = int(time.time() // 3600)
    history = History(tmp_path)
    history.write(minutes(daily(WEEKS), first=now - WEEKS, bearable=400), now=now * 60)
    history.close()
    with served(engine, tmp_path, adaptive_budget="64:192") as client:
        answer = client.get("/v1/forecast").json()
        seen = samples(client)
    assert (answer["observed_hours"], answer["seasons"]) == (WEEKS, ["day", "week"])
    starts = [hour["start"] for hour in answer["data"]]
    assert starts == [starts[0] + 3600 * h for h in range(25)]
    assert starts[0] in (now * 3600, now * 3600 + 3600)
    assert answer["peak"] == max(answer["data"], key=lambda hour: hour["expected"])
    assert 390 < answer["bearable"] < 440
    for bound in ("expected", "upper"):
        assert seen["covervlm_forecast_requests", bound] == pytest.approx(answer["data"][0][bound], abs=0.06)
        assert seen["covervlm_forecast_peak_requests", bound] == pytest.approx(answer["peak"][bound], abs=0.06)
    assert seen["covervlm_forecast_peak_start_seconds",] == answer["peak"]["start"]
    assert seen["covervlm_bearable_requests",] == answer["bearable"]


def test_what_brings_work_counts_refused_for_want_of_room_or_not_and_nothing_else_does(engine, tmp_path):
    body = chat_body("Hello")
    with served(engine, tmp_path, api_key=("sesame", "other"), key_requests_per_minute=4) as client:
        key = {"Authorization": "Bearer sesame"}
        statuses = [client.post("/v1/chat/completions", json=body, headers=key).status_code for _ in range(3)]
        statuses.append(client.post("/v1/chat/completions", json={}, headers=key).status_code)
        statuses.append(client.post("/v1/chat/completions", json=body, headers=key).status_code)
        assert statuses == [200, 200, 200, 400, 429]
        other = {"Authorization": "Bearer other"}
        assert client.post("/v1/chat/completions", json=body).status_code == 401
        assert client.post("/nowhere", json=body, headers=other).status_code == 404
        assert client.post("/v1/models", json=body, headers=other).status_code == 405
        for path in ("/health", "/ready", "/v1/models", "/v1/forecast"):
            assert client.get(path, headers=other).status_code == 200
    assert counted(tmp_path) == 5
