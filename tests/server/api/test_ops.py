"""Health, readiness, version, and the forms of /metrics."""

from importlib.metadata import version

from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine


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


def test_openmetrics_is_served_where_it_is_asked_for(client):
    response = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
