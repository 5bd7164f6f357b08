"""Labels for images and classifiers learned from unlabelled ones, over HTTP."""

import base64
import io

import numpy as np
import pytest
import torch
from clip_space.class_proxies import class_proxies
from safetensors.torch import load, save

from covervlm.server.api import image_inputs
from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.methods.inmap import fit_vision_proxies
from covervlm.server.demo import clip_path
from tests.server.api.clip_app import (
    COLORS,
    OTHER,
    SHAPES,
    clip_client,
    error,
    events,
    finished,
    scenes,
    urls,
    wait_for,
)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with clip_client(tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.fixture(scope="module")
def encoder():
    return ClipEncoder(str(clip_path()), device="cpu")


@pytest.fixture(scope="module")
def features(encoder):
    return encoder.embed_pixels([encoder.preprocess(scene.image) for scene in scenes(16)])


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def fit(client, name: str, **body) -> dict:
    answer = client.post("/v1/classifiers", json={"name": name, "classes": SHAPES} | body)
    assert answer.status_code == 202, answer.text
    return finished(client, answer.json()["id"])


def test_probabilities_of_a_clip_model_are_a_softmax_and_no_sigmoids(client):
    body = {"images": urls(1), "classes": SHAPES}
    plain = client.post("/v1/classify", json=body).json()
    assert plain["probabilities"] == "softmax"
    assert client.post("/v1/classify", json={**body, "probabilities": "softmax"}).json() == plain
    refused = client.post("/v1/classify", json={**body, "probabilities": "sigmoid"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "probabilities")


def test_images_are_labelled_by_class_names_at_the_models_own_temperature(client, encoder, features):
    answer = client.post("/v1/classify", json={"images": urls(6), "classes": SHAPES, "top": 3}).json()
    probabilities = torch.softmax(
        features[:6] @ class_proxies(encoder.embed_texts, SHAPES) / encoder.temperature, dim=1
    )
    for entry, row, scene in zip(answer["data"], probabilities, scenes(6), strict=True):
        best = row.topk(3)
        assert [c["label"] for c in entry["top"]] == [SHAPES[i] for i in best.indices]
        assert [c["probability"] for c in entry["top"]] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert entry["label"] == entry["top"][0]["label"]
        assert scene.objects[0].shape in SHAPES
    right = sum(e["label"] == s.objects[0].shape for e, s in zip(answer["data"], scenes(6), strict=True))
    assert right >= 4


def test_templates_replace_the_ensemble(client, encoder, features):
    body = {"images": urls(1), "classes": SHAPES, "templates": ["a photo of a {}"], "top": 8}
    answer = client.post("/v1/classify", json=body).json()
    proxies = class_proxies(encoder.embed_texts, SHAPES, ["a photo of a {}"])
    expected = torch.softmax(features[0] @ proxies / encoder.temperature, dim=0).sort(descending=True).values
    assert [c["probability"] for c in answer["data"][0]["top"]] == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_classifier_is_learned_from_images_used_listed_and_deleted(client, encoder, features):
    state = fit(client, "by-images", images=urls(16), parameters={"iterations": 50})
    assert state["state"] == "succeeded"
    assert state["result"]["classifier"] == "by-images@1"
    assert state["progress"]["iteration"] <= 50
    assert state["progress"]["gradient_norm"] > 0
    answer = client.post("/v1/classify", json={"images": urls(16), "classifier": "by-images", "top": 8}).json()
    proxies = fit_vision_proxies(features, class_proxies(encoder.embed_texts, SHAPES), iterations=50)
    expected = (features @ proxies).argmax(1).tolist()
    assert [SHAPES.index(entry["label"]) for entry in answer["data"]] == expected
    names = [card["name"] for card in client.get("/v1/classifiers").json()["data"]]
    assert "by-images" in names
    card = client.get("/v1/classifiers/by-images").json()
    assert (card["about"]["classes"], card["about"]["images"], card["about"]["method"]) == (SHAPES, 16, "inmap")
    assert client.delete("/v1/classifiers/by-images").json() == {"id": "by-images", "deleted": True}
    error(client.get("/v1/classifiers/by-images"), 404)
    error(client.post("/v1/classify", json={"images": urls(1), "classifier": "by-images"}), 404)


@pytest.mark.parametrize("way", ["base64 npy", "base64 safetensors", "upload", "two uploads"])
def test_embeddings_teach_as_their_images_do(client, encoder, features, way):
    body: dict = {"parameters": {"iterations": 50}}
    if way == "base64 npy":
        body["embeddings"] = base64.b64encode(npy(features.numpy())).decode()
    elif way == "base64 safetensors":
        body["embeddings"] = base64.b64encode(save({"any": features * 3})).decode()
    else:
        parts = [features] if way == "upload" else [features[:5], features[5:]]
        cards = [client.post("/v1/embeddings/uploads", content=npy(part.double().numpy())).json() for part in parts]
        assert sum(card["images"] for card in cards) == 16
        body["uploads"] = [card["id"] for card in cards]
    name = way.replace(" ", "-")
    assert fit(client, name, **body)["state"] == "succeeded"
    file = client.get(f"/v1/classifiers/{name}/file")
    expected = fit_vision_proxies(features, class_proxies(encoder.embed_texts, SHAPES), iterations=50)
    torch.testing.assert_close(load(file.content)["proxies"], expected, atol=1e-4, rtol=0)


def test_a_downloaded_classifier_may_come_back_under_another_name(client):
    fit(client, "original", images=urls(8), parameters={"iterations": 20})
    file = client.get("/v1/classifiers/original/file").content
    answer = client.put("/v1/classifiers/copy/file", content=file)
    assert answer.status_code == 201, answer.text
    labels = [
        client.post("/v1/classify", json={"images": urls(8), "classifier": name}).json()["data"]
        for name in ("original", "copy")
    ]
    assert labels[0] == labels[1]
    again = client.put("/v1/classifiers/copy/file", content=file).json()
    assert (again["name"], again["version"]) == ("copy", 2)


def test_files_that_are_no_classifiers_of_this_model_are_refused(client):
    fit(client, "sound", images=urls(8), parameters={"iterations": 20})
    file = client.get("/v1/classifiers/sound/file").content
    put = "/v1/classifiers/bad/file"
    assert "neither" in error(client.put(put, content=b"hello"), 400)["message"]
    assert "neither" in error(client.put(put, content=file[:-4]), 400)["message"]
    assert "lacks" in error(client.put(put, content=save({"proxies": torch.ones(64, 3)})), 400)["message"]
    fingerprint = ClipEncoder(str(clip_path()), device="cpu").fingerprint.encode()
    other = file.replace(fingerprint, b"0" * len(fingerprint))
    assert "another model" in error(client.put(put, content=other), 400)["message"]
    error(client.get("/v1/classifiers/bad"), 404)


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"classes": []}, "classes", "two classes"),
        ({"classes": ["star"]}, "classes", "two classes"),
        ({"classes": ["star", "STAR "]}, "classes", "twice"),
        ({"classes": ["star", " "]}, "classes", "empty"),
        ({"templates": ["no place"]}, "templates", "{}"),
        ({"images": []}, "images", "No images"),
        ({"name": "../etc"}, "name", "pattern"),
        ({"embeddings": "!!"}, "embeddings", "base64"),
        ({"parameters": {"iterations": 0}}, "parameters.iterations", "greater"),
        ({"parameters": {"speed": 1}}, "parameters.speed", "Unknown"),
        ({"classes": ["star", "ring " * 30]}, "classes[1]", "tokens"),
        ({"model": "other"}, "model", "does not exist"),
    ],
)
def test_requests_that_make_no_classifier_start_no_job(client, change, param, message):
    before = len(client.get("/v1/jobs").json()["data"])
    body = {"name": "never", "classes": SHAPES, "images": urls(1)} | change
    detail = error(client.post("/v1/classifiers", json=body), 404 if param == "model" else 400)
    assert detail["param"] == param
    assert message in detail["message"]
    assert len(client.get("/v1/jobs").json()["data"]) == before


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 64), np.nan, np.float32), "Embedding 0 holds NaN"),
        (np.array([[1.0] * 64, [np.inf] * 64]), "Embedding 1 holds NaN or infinity"),
        (np.zeros((2, 64), np.float32), "zero throughout"),
        (np.ones((3, 63), np.float32), "63 dimensions; this model's have 64"),
        (np.ones((0, 64), np.float32), "at least one image"),
        (np.ones(64, np.float32), "two-dimensional"),
        (np.ones((2, 64), np.int64), "floats"),
        (np.array([{"a": 1}]), "cannot be read"),
    ],
)
def test_embeddings_that_teach_nothing_are_refused(client, array, message):
    assert message in error(client.post("/v1/embeddings/uploads", content=npy(array)), 400)["message"]
    body = {"name": "never", "classes": SHAPES, "embeddings": base64.b64encode(npy(array)).decode()}
    assert message in error(client.post("/v1/classifiers", json=body), 400)["message"]


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"classes": []}, "classes", "two classes"),
        ({"classes": ["star"]}, "classes", "two classes"),
        ({"classes": ["star", "Star"]}, "classes", "twice"),
        ({"images": []}, "images", ""),
        ({"images": "not a list"}, "images", ""),
        ({"templates": ["{} and {}"]}, "templates", "{}"),
        ({"classifier": "unknown", "classes": None}, None, "There is no classifier 'unknown'"),
        ({"top": 0}, "top", ""),
        ({"images": ["x"] * 11, "top": 10_000}, None, "lower 'top'"),
    ],
)
def test_what_cannot_be_labelled_is_refused_by_name(client, change, param, message):
    body = {"images": urls(1), "classes": SHAPES} | change
    detail = error(client.post("/v1/classify", json=body), 404 if "classifier" in change else 400)
    assert detail["param"] == param
    assert message in detail["message"]


def test_a_requests_images_are_limited_together(client, monkeypatch):
    monkeypatch.setattr(image_inputs, "MOST_PIXELS", 2 * 336 * 336)
    assert client.post("/v1/classify", json={"images": urls(2), "classes": SHAPES}).status_code == 200
    detail = error(client.post("/v1/classify", json={"images": urls(3), "classes": SHAPES}), 400)
    assert detail["code"] == "images_too_large"


def test_either_classes_or_a_classifier(client):
    for body in ({}, {"classes": SHAPES, "classifier": "x"}, {"classifier": "x", "templates": ["{}"]}):
        error(client.post("/v1/classify", json={"images": urls(1)} | body), 400)
    error(client.post("/v1/classify", json={"images": [], "classes": SHAPES}), 400)


def test_nobody_sees_what_belongs_to_somebody_else(client, features):
    state = fit(client, "mine", images=urls(8), parameters={"iterations": 20})
    upload = client.post("/v1/embeddings/uploads", content=npy(features.numpy())).json()["id"]
    for method, path in [
        ("GET", "/v1/classifiers/mine"),
        ("GET", "/v1/classifiers/mine/file"),
        ("DELETE", "/v1/classifiers/mine"),
        ("GET", f"/v1/jobs/{state['id']}"),
        ("GET", f"/v1/jobs/{state['id']}/events"),
        ("DELETE", f"/v1/jobs/{state['id']}"),
        ("DELETE", f"/v1/embeddings/uploads/{upload}"),
    ]:
        error(client.request(method, path, headers=OTHER), 404)
    body = {"images": urls(1), "classifier": "mine"}
    error(client.post("/v1/classify", json=body, headers=OTHER), 404)
    body = {"name": "theirs", "classes": SHAPES, "uploads": [upload]}
    error(client.post("/v1/classifiers", json=body, headers=OTHER), 404)
    assert client.get("/v1/classifiers", headers=OTHER).json()["data"] == []
    assert client.get("/v1/jobs", headers=OTHER).json()["data"] == []
    assert client.get("/v1/classifiers/mine").status_code == 200


def test_a_running_job_is_watched_and_cancelled(client, features):
    many = np.repeat(features.numpy(), 200, axis=0)
    body = {"name": "long", "classes": SHAPES, "embeddings": base64.b64encode(npy(many)).decode()}
    body["parameters"] = {"iterations": 100_000, "tolerance": 0}
    job = client.post("/v1/classifiers", json=body).json()["id"]
    queued = client.post("/v1/classifiers", json=body | {"name": "waits"}).json()["id"]
    assert client.delete(f"/v1/jobs/{queued}").json()["state"] == "cancelled"

    def running() -> dict | None:
        state = client.get(f"/v1/jobs/{job}").json()
        return state if state["progress"].get("iteration", 0) > 1 else None

    state = wait_for(running)
    assert state["state"] == "running"
    assert state["progress"]["gradient_norm"] > 0
    assert state["progress"]["eta_seconds"] > 0
    assert 0 < state["progress"]["share"] < 1
    client.delete(f"/v1/jobs/{job}")
    assert finished(client, job)["state"] == "cancelled"
    assert client.get(f"/v1/jobs/{queued}").json()["state"] == "cancelled"
    error(client.get("/v1/classifiers/long"), 404)
    assert client.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"


def test_events_tell_of_every_stage_of_a_job(client, features):
    many = np.repeat(features.numpy(), 400, axis=0)
    body = {"name": "told", "classes": SHAPES, "embeddings": base64.b64encode(npy(many)).decode()}
    job = client.post("/v1/classifiers", json=body | {"parameters": {"iterations": 400, "tolerance": 0}})
    states = events(client, job.json()["id"])
    assert states[-1]["state"] == "succeeded"
    fitting = [state["progress"] for state in states if state["progress"].get("phase") == "fitting"]
    assert fitting
    assert all(told["gradient_norm"] > 0 and told["eta_seconds"] >= 0 for told in fitting)
    iterations = [told["iteration"] for told in fitting]
    assert iterations == sorted(iterations)
    assert states[-1]["progress"]["iteration"] == states[-1]["progress"]["iterations"] == 400


def test_a_finished_job_is_forgotten_on_request_and_an_unfinished_one_is_not(client, features):
    done = fit(client, "forgettable", images=urls(4), parameters={"iterations": 5})["id"]
    error(client.delete(f"/v1/jobs/{done}", params={"forget": True}, headers=OTHER), 404)
    assert client.delete(f"/v1/jobs/{done}", params={"forget": True}).json()["state"] == "succeeded"
    error(client.get(f"/v1/jobs/{done}"), 404)
    error(client.delete(f"/v1/jobs/{done}", params={"forget": True}), 404)
    assert client.get("/v1/classifiers/forgettable").status_code == 200

    many = np.repeat(features.numpy(), 200, axis=0)
    body = {"name": "endless", "classes": SHAPES, "embeddings": base64.b64encode(npy(many)).decode()}
    job = client.post("/v1/classifiers", json=body | {"parameters": {"iterations": 100_000, "tolerance": 0}})
    job = job.json()["id"]
    assert error(client.delete(f"/v1/jobs/{job}", params={"forget": True}), 409)["code"] == "job_unfinished"
    client.delete(f"/v1/jobs/{job}")
    assert finished(client, job)["state"] == "cancelled"


def test_a_name_that_is_trained_again_has_another_version_and_keeps_the_first(client):
    body = {"name": "again", "images": urls(4), "parameters": {"iterations": 5}}
    for classes in (SHAPES, COLORS):
        client.post("/v1/classifiers", json=body | {"classes": classes})
    jobs = client.get("/v1/jobs").json()["data"][-2:]
    told = [finished(client, job["id"])["result"]["classifier"] for job in jobs]
    assert told == ["again@1", "again@2"]
    classes = {
        name: client.get(f"/v1/classifiers/{name}").json()["about"]["classes"]
        for name in ("again@1", "again@2", "again")
    }
    assert classes == {"again@1": SHAPES, "again@2": COLORS, "again": COLORS}
    label = client.post("/v1/classify", json={"images": urls(1), "classifier": "again@1"}).json()["data"][0]["label"]
    assert label in SHAPES
    assert client.delete("/v1/classifiers/again@2").status_code == 200
    assert client.get("/v1/classifiers/again").json()["version"] == 1
    file = client.get("/v1/classifiers/again/file").content
    assert client.put("/v1/classifiers/again/file", content=file).json()["version"] == 3
    client.delete("/v1/classifiers/again")
    error(client.get("/v1/classifiers/again@1"), 404)
