"""The schema at /openapi.json: what it says of keys, events, files and refusals, and that it is whole."""

import json
import re

import pytest
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.api import openapi
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine


def schema(**settings):
    client = TestClient(create_app(Settings(clip_model="demo", **settings), ScriptedEngine()))
    headers = {"Authorization": "Bearer one"} if settings else {}
    return client.get("/openapi.json", headers=headers).json()


@pytest.fixture(scope="module")
def served():
    return schema()


def test_it_is_written_down_once(monkeypatch):
    written = []

    class Counted(openapi.JSONResponse):
        def render(self, content):
            written.append(content["openapi"])
            return super().render(content)

    monkeypatch.setattr(openapi, "JSONResponse", Counted)
    client = TestClient(create_app(Settings(clip_model="demo"), ScriptedEngine()))
    first, second = (client.get("/openapi.json") for _ in range(2))
    assert first.json() == second.json()
    assert first.headers["content-type"] == "application/json"
    assert len(written) == 1


def test_every_reference_leads_somewhere_and_no_name_tells_of_modules(served):
    names = set(served["components"]["schemas"])
    assert {name.rpartition("/")[2] for name in re.findall(r'"\$ref": "([^"]+)"', json.dumps(served))} <= names
    assert not [name for name in names if "__" in name]


def test_every_operation_says_what_it_answers_with_and_how_it_fails(served):
    for path, operations in served["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            assert {"4XX", "5XX"} < set(answers), (method, path)
            for status in ("4XX", "5XX"):
                error = "MessagesErrorBody" if path.startswith("/v1/messages") else "ErrorBody"
                assert answers[status]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{error}")
            [success] = [answer for status, answer in answers.items() if status.startswith("2")]
            assert success["content"], (method, path)
            assert ("requestBody" in operation) == (method in ("post", "put")), (method, path)


def test_streams_are_described_with_the_model_of_their_events(served):
    answer = served["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(answer) == {"application/json", "text/event-stream"}
    assert "ChatCompletionChunk" in answer["text/event-stream"]["schema"]["description"]
    assert "delta" in served["components"]["schemas"]["ChunkChoice"]["properties"]


def test_what_is_refused_by_name_is_no_part_of_the_schema(served):
    fields = served["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert fields["functions"]["enum"] == [None, []]
    assert fields["prediction"]["enum"] == [None]


def test_keys_are_described_where_there_are_keys(served):
    assert "securitySchemes" not in served["components"]
    with_keys = schema(api_key="one")
    for path, operations in with_keys["paths"].items():
        for operation in operations.values():
            assert operation["security"] == ([] if path in ("/health", "/ready") else [{"key": []}])
    assert with_keys["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}


def test_a_page_shows_the_schema_without_anything_from_elsewhere(client):
    page = client.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "script-src 'self';" in page.headers["content-security-policy"]
    for link in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(f"/{link}").status_code == 200, link
    assert "<style" not in page.text
    assert re.findall(r"<script(?![^>]* src=)", page.text) == []
