"""Traces of requests, seen by OpenTelemetry's own exporters."""

import json
import logging
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from PIL import Image
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.settings import Settings
from covervlm.server.telemetry.tracing import Tracing, build_tracing
from tests.server.api.scripted import ScriptedEngine, chat_body, data_url, prompt_report

RED = data_url(Image.new("RGB", (8, 6), "red"))
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def client(engine, exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with TestClient(create_app(Settings(), engine, Tracing(provider))) as client:
        yield client


def ask(client, **fields):
    return client.post("/v1/chat/completions", json=chat_body("Hello", RED, **fields), headers={"X-Request-Id": "r7"})


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_a_span_with_a_child_for_every_stage(client, exporter, stream):
    ask(client, stream=stream, vision_pruning={"keep_tokens": 64, "method": "uniform"})
    *children, root = exporter.get_finished_spans()
    assert (root.name, root.kind, root.parent) == ("POST /v1/chat/completions", SpanKind.SERVER, None)
    assert [child.name for child in children] == [
        "media",
        "queue",
        "preprocess",
        "tower",
        "selection",
        "prefill",
        "decode",
    ]
    for child in children:
        assert child.parent.span_id == root.context.span_id
        assert root.start_time <= child.start_time <= child.end_time
    durations = {child.name: (child.end_time - child.start_time) / 1e9 for child in children}
    assert durations["tower"] == pytest.approx(0.003, abs=1e-6)
    assert durations["prefill"] == pytest.approx(0.005, abs=1e-6)
    starts = [child.start_time for child in children[:-1]]
    assert starts == sorted(starts)


def test_a_span_says_what_was_asked_of_the_model_and_what_it_read(client, exporter):
    ask(client, vision_pruning={"keep_tokens": 64, "method": "uniform"})
    *children, root = exporter.get_finished_spans()
    attributes = dict(root.attributes)
    assert 0 < attributes.pop("gen_ai.server.time_to_first_token") < 60
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "covervlm.request_id": "r7",
        "covervlm.owner": "anonymou",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "demo",
        "gen_ai.usage.input_tokens": 74,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("stop",),
        "covervlm.pruning.method": "uniform",
        "covervlm.vision_tokens.before": 576,
        "covervlm.vision_tokens.after": 64,
    }
    (selection,) = [child for child in children if child.name == "selection"]
    assert selection.attributes["covervlm.vision_tokens.after"] == 64


def test_a_span_hangs_below_its_callers(client, exporter):
    client.get("/v1/models", headers={"traceparent": CALLER})
    (root,) = exporter.get_finished_spans()
    assert f"{root.context.trace_id:032x}" == CALLER.split("-")[1]
    assert f"{root.parent.span_id:016x}" == CALLER.split("-")[2]


def test_the_log_line_names_the_trace(client, caplog):
    caplog.set_level(logging.INFO)
    client.get("/v1/models", headers={"traceparent": CALLER})
    (record,) = [record for record in caplog.records if record.name == "covervlm.request"]
    assert record.fields["trace_id"] == CALLER.split("-")[1]


def test_failures_of_the_server_are_errors_and_mistakes_of_callers_are_not(client, engine, exporter):
    engine.script = lambda request: [RuntimeError("bug")]
    ask(client)
    ask(client, model="other")
    engine.script = lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), RuntimeError("bug")]
    ask(client, stream=True)
    roots = [span for span in exporter.get_finished_spans() if span.kind == SpanKind.SERVER]
    assert [span.status.status_code for span in roots] == [StatusCode.ERROR, StatusCode.UNSET, StatusCode.ERROR]
    assert [span.attributes["error.type"] for span in roots] == ["internal_error", "model_not_found", "internal_error"]


def test_probes_make_no_spans(client, exporter):
    for path in ("/health", "/ready", "/metrics"):
        client.get(path)
    assert exporter.get_finished_spans() == ()


def test_no_span_holds_what_was_asked_or_answered(client, exporter):
    client.post("/v1/chat/completions", json=chat_body("xylophonic-zebra", RED))
    text = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert "xylophonic" not in text
    assert "red circle" not in text


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_a_collector_there_is_no_tracing(environment):
    assert build_tracing(environment) is None


def test_without_the_packages_the_server_says_so_and_serves(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert build_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}) is None
    assert "pip install 'covervlm[otel]'" in caplog.text


def test_without_a_collector_the_sdk_is_not_imported():
    script = (
        "import json, sys\n"
        "from covervlm.server import create_app\n"
        "from covervlm.server.settings import Settings\n"
        "create_app(Settings())\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('opentelemetry.sdk')]))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_collector_is_sent_the_spans_by_the_time_the_server_has_stopped(monkeypatch):
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_address[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        try:
            with TestClient(create_app(Settings(), ScriptedEngine())) as client:
                client.get("/v1/models")
        finally:
            collector.shutdown()
            thread.join()
    ((path, request),) = received
    assert path == "/v1/traces"
    (resource,) = request.resource_spans
    names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert names["service.name"] == "covervlm"
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["GET /v1/models"]
