"""The tab "Traffic" in a real Chromium, over answers that a test scripts and figures that it makes up."""

import json

import pytest

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.live import live_server

pytest.importorskip("selenium")

pytestmark = pytest.mark.browser

SHADOW = """
# HELP covervlm_shadow_requests_total Answers drawn for comparison, by what came of it.
covervlm_shadow_requests_total{outcome="compared"} 8.0
covervlm_shadow_answers_total{method="mmtok",budget="64"} 8.0
covervlm_shadow_exact_answers_total{method="mmtok",budget="64"} 6.0
covervlm_shadow_tokens_total{method="mmtok",budget="64"} 200.0
covervlm_shadow_agreeing_tokens_total{method="mmtok",budget="64"} 190.0
covervlm_shadow_waiting 1.0
"""


def tiles(page):
    script = (
        "return [...document.querySelectorAll('.tile')].map((tile) => [...tile.children].map((one) => one.innerText))"
    )
    return {name: (value, note) for name, value, note in page.driver.execute_script(script)}


def test_the_budget_in_force_and_what_it_saved_are_shown(page, engine):
    with live_server(create_app(Settings(clip_model="none", keep_tokens=64), engine)) as url:
        page.open(url).previewed(64)
        page.ask()
        page.summary()
        page.press("#tab-traffic")
        page.wait(lambda: tiles(page))
    shown = tiles(page)
    assert shown["Budget in force"][0] == "64 tokens"
    # 64 of 576, then every one of 576.
    assert shown["Vision tokens saved"] == ("44.4 %", "512 of 1,152 never reached the language model")
    assert shown["Requests running"] == ("3", "2 waiting; 2 answers so far")
    assert shown["First token, median"][0].endswith(" ms")
    rows = [row.text for row in page.all("#methods tbody tr")]
    assert sorted(rows) == ["every token 576 576 0.0 %", "mmtok 576 64 88.9 %"]
    assert "compares nothing" in page.text("#shadow")
    assert "72 hours of traffic" in page.text("#forecast")


class Figures:
    """Stands before the app and answers the reads of this tab with more than it would."""

    def __init__(self, app):
        self.app = app
        hours = [{"start": 3600 * hour, "expected": hour, "upper": 2 * hour} for hour in range(25)]
        forecast = {"observed_hours": 80, "needed_hours": 72, "bearable": 30, "peak": hours[24], "data": hours}
        self.answers = {"/metrics": SHADOW, "/v1/forecast": json.dumps(forecast)}

    async def __call__(self, scope, receive, send):
        text = self.answers.get(scope.get("path"))
        if text is None:
            return await self.app(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})


def test_agreement_and_forecast_are_shown_where_there_are_any(page, engine):
    settings = Settings(clip_model="none", adaptive_budget="16:128")
    with live_server(Figures(create_app(settings, engine))) as url:
        page.open(url, "traffic")
        page.wait(lambda: page.all("#shadow tbody tr"))
    assert page.text("#shadow tbody tr") == "mmtok, 64 8 75.0 % 95.0 %"
    assert "1 answer waits for comparison" in page.text("#shadow")
    assert "24 requests, 48 at the upper end" in page.text("#forecast")
    assert "From 30 an hour on, some had to wait." in page.text("#forecast")
    assert len(page.all("#forecast .expected")) == 25
