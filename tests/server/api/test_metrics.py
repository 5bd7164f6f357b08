"""What /metrics says after requests that were counted independently."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.settings import Settings
from tests.server.api.clip_app import SHAPES, clip_client, finished, urls
from tests.server.api.scripted import ScriptedEngine, chat_body, prompt_report


def samples(client):
    """Every sample of /metrics by its name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


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
    assert seen["covervlm_request_prompt_tokens_sum",] == 10 + 128
    assert seen["covervlm_request_generation_tokens_sum",] == 6
    assert seen["covervlm_stage_seconds_sum", "tower", "uniform"] == 0.003
    assert seen["covervlm_stage_seconds_sum", "media", "uniform"] > 0
    stages = {key[1:] for key in seen if key[0] == "covervlm_stage_seconds_count"}
    names = ("media", "queue", "preprocess", "tower", "selection", "prefill", "decode")
    assert stages == {tuple(sorted(("uniform", stage))) for stage in names}
    assert seen["covervlm_http_request_duration_seconds_count", "/v1/chat/completions"] == 2


def test_metrics_ask_the_engine_for_its_gauges(client):
    seen = samples(client)
    assert seen["covervlm_ready",] == 1
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


def test_text_alone_has_neither_tower_nor_selection(client):
    client.post("/v1/chat/completions", json=chat_body("Hello"))
    stages = {key[1:] for key in samples(client) if key[0] == "covervlm_stage_seconds_count"}
    assert stages == {("none", "queue"), ("none", "preprocess"), ("none", "prefill"), ("decode", "none")}


def test_what_is_served_is_in_the_labels_of_info(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    (info,) = (family for family in families if family.name == "covervlm_info")
    assert info.samples[0].value == 1
    assert info.samples[0].labels == {
        "version": version("covervlm"),
        "model": "demo",
        "engine": "scripted",
        "architecture": "Scripted",
        "dtype": "float32",
        "device": "cpu",
    }


def test_metrics_are_there_while_the_model_loads(engine):
    seen = samples(TestClient(create_app(Settings(), engine)))
    assert seen["covervlm_ready",] == 0
    assert not any(key[0] == "covervlm_info" for key in seen)


def test_the_process_tells_of_its_memory_and_time(client):
    seen = samples(client)
    assert seen["process_resident_memory_bytes",] > 2**20
    assert seen["process_cpu_seconds_total",] > 0


def test_jobs_and_sessions_are_counted_by_what_became_of_them(tmp_path):
    with clip_client(tmp_path) as client:
        assert samples(client)["covervlm_streams",] == 0
        client.post("/v1/streams", json={"classes": SHAPES, "horizon": 10}).raise_for_status()
        other = client.post("/v1/streams", json={"classes": SHAPES, "horizon": 10}).json()["id"]
        client.delete(f"/v1/streams/{other}")
        body = {"name": "shapes", "classes": SHAPES, "images": urls(6), "parameters": {"iterations": 2}}
        job = client.post("/v1/classifiers", json=body).json()["id"]
        assert finished(client, job)["state"] == "succeeded"
        seen = samples(client)
        assert seen["covervlm_streams",] == 1
        states = {key[1]: value for key, value in seen.items() if key[0] == "covervlm_jobs"}
        assert states == {"queued": 0, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 0}


def test_the_documentation_lists_exactly_what_is_measured(engine, tmp_path):
    settings = Settings(adaptive_budget="64:192", data_dir=tmp_path, shadow=0.01)
    with TestClient(create_app(settings, engine)) as client:
        families = list(text_string_to_metric_families(client.get("/metrics").text))
    # As the server runs, without the times at which counters began.
    measured = {family.name: family for family in families if not family.name.endswith("_created")}
    documented = {}
    for line in (Path(__file__).parents[3] / "docs/operations.md").read_text().splitlines():
        if row := re.match(r"\| `(\w+)` \| (counter|gauge|histogram) \|", line):
            documented[row[1].removesuffix("_total") if row[2] == "counter" else row[1]] = row[2]
    assert documented == {name: family.type for name, family in measured.items()}
