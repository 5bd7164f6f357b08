"""What belongs to one key does not exist for another, on any route: also on those that are added later."""

import base64
import io
import re

import numpy as np
import pytest
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.clip_app import finished
from tests.server.api.scripted import ScriptedEngine

ONE, TWO = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
CLASSES = {"classes": ["red", "blue"]}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    settings = Settings(api_key=("one", "two"), clip_model="demo", data_dir=tmp_path_factory.mktemp("data"))
    with TestClient(create_app(settings, ScriptedEngine())) as client:
        yield client


def npy(rows: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.random.default_rng(rows).normal(size=(rows, 64)).astype(np.float32))
    return file.getvalue()


@pytest.fixture(scope="module")
def things(client) -> dict[str, str]:
    """Ids of one thing of every kind that the key `one` keeps, by the name of the path's parameter."""
    upload = client.post("/v1/embeddings/uploads", content=npy(20), headers=ONE).json()["id"]
    body = {"name": "mine", **CLASSES, "uploads": [upload], "parameters": {"iterations": 2}}
    job = client.post("/v1/classifiers", json=body, headers=ONE).json()["id"]
    assert finished(client, job, headers=ONE)["state"] == "succeeded"
    body = {"name": "mine", "method": "kda", "uploads": [upload], "parameters": {"epochs": 1}}
    space = client.post("/v1/projections", json=body, headers=ONE).json()["id"]
    assert finished(client, space, headers=ONE)["state"] == "succeeded"
    session = client.post("/v1/streams", json={**CLASSES, "horizon": 5}, headers=ONE).json()["id"]
    return {"upload": upload, "job": job, "name": "mine", "stream": session}


def test_a_stranger_learns_nothing_of_what_there_is(client, things):
    """Every route that names a thing answers another key as if it were not there, and leaves it as it is."""
    named = [
        (method.upper(), path)
        for path, methods in client.app.openapi()["paths"].items()
        for method in methods
        if "{" in path and path != "/v1/models/{model}"
    ]
    assert len(named) > 10
    bodies = {
        "/v1/streams/{stream}/observe": {"json": {"images": ["data:,"]}},
        "/v1/classifiers/{name}/explain": {"json": {"embedding": [1.0] * 64}},
        "/v1/streams/{stream}/snapshot": {
            "content": client.get(f"/v1/streams/{things['stream']}/snapshot", headers=ONE).content
        },
    }
    for method, path in named:
        if method == "PUT" and path in ("/v1/classifiers/{name}/file", "/v1/projections/{name}/file"):
            continue  # makes a thing of one's own, under a name that another may have as well
        sent = bodies.get(path, {}) if method in ("PUT", "POST") else {}
        theirs, nobodys = (
            client.request(method, path.format(**names), headers=TWO, **sent)
            for names in (things, dict.fromkeys(things, "nothing"))
        )
        assert theirs.status_code == nobodys.status_code == 404, (method, path, theirs.text)
        hide = "|".join([*things.values(), "nothing"])
        assert re.sub(hide, "", theirs.text) == re.sub(hide, "", nobodys.text), (method, path)
    for kind, name in (("jobs", "job"), ("classifiers", "name"), ("projections", "name"), ("streams", "stream")):
        assert client.get(f"/v1/{kind}/{things[name]}", headers=ONE).status_code == 200


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/classifiers", "/v1/projections", "/v1/streams"])
def test_lists_hold_what_is_ones_own(client, things, path):
    assert client.get(path, headers=ONE).json()["data"]
    assert client.get(path, headers=TWO).json()["data"] == []


def test_anothers_things_cannot_be_used_by_name(client, things, red_png):
    body = {"classifier": things["name"], "images": [red_png]}
    assert client.post("/v1/classify", json=body, headers=ONE).status_code == 200
    assert client.post("/v1/classify", json=body, headers=TWO).status_code == 404
    body = {"model": f"demo-clip/{things['name']}", "input": "x"}
    assert client.post("/v1/embeddings", json=body, headers=ONE).status_code == 200
    assert client.post("/v1/embeddings", json=body, headers=TWO).status_code == 404
    body = {"name": "theirs", **CLASSES, "uploads": [things["upload"]]}
    assert client.post("/v1/classifiers", json=body, headers=TWO).status_code == 404


def test_two_keys_may_give_the_same_name_and_each_has_its_own(client, things):
    body = {"name": things["name"], **CLASSES, "embeddings": base64.b64encode(npy(9)).decode()}
    body["parameters"] = {"iterations": 2}
    job = client.post("/v1/classifiers", json=body, headers=TWO).json()["id"]
    assert finished(client, job, headers=TWO)["state"] == "succeeded"
    cards = [client.get(f"/v1/classifiers/{things['name']}", headers=key).json() for key in (ONE, TWO)]
    assert [card["about"]["images"] for card in cards] == [20, 9]
    assert client.delete(f"/v1/classifiers/{things['name']}", headers=TWO).status_code == 200
    assert client.get(f"/v1/classifiers/{things['name']}", headers=ONE).json() == cards[0]


def test_an_answer_under_an_idempotency_key_is_its_owners(client, red_png):
    """The same key, the same body: another caller's session remembers nothing of it."""
    sessions = [
        client.post("/v1/streams", json={**CLASSES, "horizon": 5}, headers=key).json()["id"] for key in (ONE, TWO)
    ]
    for session, key in zip(sessions, (ONE, TWO), strict=True):
        answer = client.post(
            f"/v1/streams/{session}/observe",
            json={"images": [red_png]},
            headers={**key, "Idempotency-Key": "same"},
        )
        assert (answer.json()["stream"], answer.json()["observed"]) == (session, 1)
