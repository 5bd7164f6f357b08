"""Health, readiness, version, and what /metrics says after known requests."""

from importlib.metadata import version

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.engines.base import GenerationChunk
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine, chat_body, prompt_report


def samples(client):
    """Every sample of /metrics by its name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def test_health_answers_before_the_model_is_ready_and_ready_does_not(engine):
    client = TestClient(create_app(Settings(), engine))
    assert client.get("/health").json() == {"status": "ok"}
    response = client.get("/ready")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    with client:
        assert client.get("/ready").json() == {"status": "ready"}
    assert client.get("/ready").status_code == 503


def test_the_app_starts_its_engine_once_and_stops_it():
    class Counting(ScriptedEngine):
        starts = stops = 0

        async def start(self):
            await super().start()
            self.starts += 1

        async def stop(self):
            await super().stop()
            self.stops += 1

    engine = Counting()
    with TestClient(create_app(Settings(), engine)):
        assert (engine.starts, engine.stops) == (1, 0)
    assert (engine.starts, engine.stops) == (1, 1)
    engine.started = True
    with TestClient(create_app(Settings(), engine)):
        assert engine.starts == 1


def test_version_tells_package_and_engine(client):
    assert client.get("/version").json() == {"version": version("covervlm"), "engine": "scripted"}


def test_the_schema_is_served_and_documents_failures(client):
    schema = client.get("/openapi.json").json()
    operation = schema["paths"]["/v1/chat/completions"]["post"]
    assert set(operation["responses"]) == {"200", "4XX", "5XX"}
    properties = schema["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"vision_pruning", "temperature", "stop"} <= set(properties)


@pytest.mark.parametrize("stream", [False, True])
def test_metrics_count_what_was_asked_and_answered(client, red_png, stream):
    body = chat_body(
        "Hello", red_png, red_png, vision_pruning={"keep_tokens": 64, "method": "uniform"}, n=2, stream=stream
    )
    client.post("/v1/chat/completions", json=body)
    client.post("/v1/chat/completions", json={**body, "model": "other"})
    client.get("/nowhere/at/all")
    seen = samples(client)
    assert seen["covervlm_http_requests_total", "/v1/chat/completions", "200"] == 1
    assert seen["covervlm_http_requests_total", "/v1/chat/completions", "404"] == 1
    assert seen["covervlm_http_requests_total", "404", "unknown"] == 1
    assert seen["covervlm_http_requests_in_flight",] == 1
    assert seen["covervlm_prompt_tokens_total",] == 10 + 128
    assert seen["covervlm_generation_tokens_total",] == 6
    assert seen["covervlm_vision_tokens_before_total", "uniform"] == 1152
    assert seen["covervlm_vision_tokens_after_total", "uniform"] == 128
    assert seen["covervlm_request_success_total", "stop"] == 2
    assert seen["covervlm_time_to_first_token_seconds_count",] == 1
    assert seen["covervlm_inter_token_latency_seconds_count",] == 4
    assert seen["covervlm_e2e_request_latency_seconds_count",] == 1
    assert seen["covervlm_requests_cancelled_total",] == 0
    assert seen["covervlm_stage_seconds_sum", "tower"] == 0.003
    assert seen["covervlm_stage_seconds_sum", "media"] > 0
    stages = {key[1] for key in seen if key[0] == "covervlm_stage_seconds_count"}
    assert stages == {"media", "queue", "preprocess", "tower", "selection", "prefill"}


def test_metrics_ask_the_engine_for_its_gauges(client):
    seen = samples(client)
    assert seen["covervlm_num_requests_running",] == 3
    assert seen["covervlm_num_requests_waiting",] == 2
    assert seen["covervlm_feature_cache_bytes",] == 1000
    assert seen["covervlm_feature_cache_hits_total",] == 7
    assert seen["covervlm_feature_cache_misses_total",] == 5


def test_a_chunk_of_several_tokens_counts_each(client, engine):
    engine.script = lambda request: [
        GenerationChunk(0, "a", 1, prompt=prompt_report(request)),
        GenerationChunk(0, "b c d", 3, finish_reason="length"),
    ]
    client.post("/v1/chat/completions", json=chat_body("Hello"))
    assert samples(client)["covervlm_inter_token_latency_seconds_count",] == 3


def test_a_failure_is_neither_success_nor_cancellation(client, engine):
    engine.script = lambda request: [RuntimeError("bug")]
    client.post("/v1/chat/completions", json=chat_body("Hello"))
    seen = samples(client)
    assert seen["covervlm_http_requests_total", "/v1/chat/completions", "500"] == 1
    assert seen["covervlm_requests_cancelled_total",] == 0
    assert seen["covervlm_e2e_request_latency_seconds_count",] == 0


def test_two_apps_count_apart(client, engine):
    client.post("/v1/chat/completions", json=chat_body("Hello"))
    other = TestClient(create_app(Settings(), ScriptedEngine()))
    assert samples(other)["covervlm_generation_tokens_total",] == 0


def test_openmetrics_is_served_where_it_is_asked_for(client):
    response = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
