"""A server without a CLIP model says so, on every path that would need one, and at its start."""

import logging

import pytest
from openai import NotFoundError, OpenAI
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.api.routes.clip import PLACES
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine


@pytest.fixture(scope="module")
def own_model():
    return TestClient(create_app(Settings(model="org/model"), ScriptedEngine()))


def schema(**settings):
    return TestClient(create_app(Settings(**settings), ScriptedEngine())).get("/openapi.json").json()["paths"]


@pytest.fixture(scope="module")
def lost():
    """Operations that only a server with a CLIP model has."""
    whole, bare = schema(clip_model="demo"), schema(clip_model="none")
    return [(method, path) for path, methods in whole.items() if path not in bare for method in methods]


def test_every_path_of_the_clip_model_names_the_option(own_model, lost):
    assert len(lost) > 15
    for method, path in lost:
        answer = own_model.request(method, path.replace("{", "").replace("}", ""), json={})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (404, "no_clip_model", "invalid_request_error")
        assert "--clip-model" in error["message"]
        assert path.startswith(PLACES)


def test_other_paths_stay_unknown(own_model):
    assert own_model.post("/v1/images/generations", json={}).json()["error"]["code"] == "unknown_url"


def test_the_openai_package_does_not_try_again(own_model):
    client = OpenAI(base_url="http://testserver/v1", api_key="none", http_client=own_model, max_retries=2)
    with pytest.raises(NotFoundError, match="--clip-model"):
        client.embeddings.create(model="x", input="y")


def test_the_start_says_so(caplog):
    with caplog.at_level(logging.INFO, logger="covervlm"):
        create_app(Settings(model="org/model"), ScriptedEngine())
    assert "--clip-model FOLDER or HUB_ID turns them on" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="covervlm"):
        create_app(Settings(), ScriptedEngine())
    assert "CLIP" not in caplog.text
