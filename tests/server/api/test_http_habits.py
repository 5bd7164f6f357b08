"""What HTTP clients and browsers do besides sending JSON: HEAD, compressed bodies, other origins, wrong keys."""

import gzip
import json

import pytest
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.clip_app import error
from tests.server.api.scripted import ScriptedEngine, chat_body


def app(**settings):
    return TestClient(create_app(Settings(clip_model="none", **settings), ScriptedEngine()))


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/demo", "/health", "/version", "/metrics", "/", "/nowhere"])
def test_head_is_get_without_a_body(client, path):
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    if path not in ("/metrics", "/nowhere"):
        assert head.headers["content-length"] == get.headers["content-length"]


def test_head_where_only_post_is_taken_is_a_405(client):
    assert client.head("/v1/chat/completions").status_code == 405


def test_a_compressed_body_is_a_415_that_says_so(client, engine):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps(chat_body("Hello")).encode())
    refused = client.post("/v1/chat/completions", content=body, headers=headers)
    assert "without Content-Encoding" in error(refused, 415)["message"]
    assert engine.requests == []
    headers["Content-Encoding"] = "identity"
    assert client.post("/v1/chat/completions", content=json.dumps(chat_body("x")), headers=headers).status_code == 200


def test_pages_of_other_origins_may_read_the_request_id():
    answer = app(cors_origins=["https://page.test"]).get("/v1/models", headers={"Origin": "https://page.test"})
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


def test_a_wrong_key_is_told_from_a_missing_one():
    client = app(api_key="one")
    missing = error(client.get("/v1/models"), 401)["message"]
    wrong = error(client.get("/v1/models", headers={"Authorization": "Bearer two"}), 401)["message"]
    assert missing == "Send an API key of this server in the header 'Authorization: Bearer KEY', or 'x-api-key: KEY'."
    assert wrong.startswith("The key that was sent is not an API key of this server.")
    assert client.get("/v1/models", headers={"Authorization": "Bearer one"}).status_code == 200
