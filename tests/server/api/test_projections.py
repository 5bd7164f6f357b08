"""Projections over HTTP: learned, judged, embedded with by OpenAI's client, kept across restarts, refused by name."""

import base64
import io
import json

import httpx
import numpy as np
import openai
import pytest
import torch
from safetensors.torch import load, save
from torch.nn.functional import normalize

from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.kda import KDA
from covervlm.server.clip.methods.soft_triple import SoftTriple
from covervlm.server.demo import clip_path
from tests.server.api.clip_app import OTHER, clip_client, error, finished, scenes
from tests.server.api.scripted import data_url

N = 48
SCENES = scenes(N)
SHAPES = [scene.objects[0].shape for scene in SCENES]
COLORS = [scene.objects[0].color for scene in SCENES]
FEW = {"epochs": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def client(folder):
    with clip_client(folder) as client:
        yield client


@pytest.fixture(scope="module")
def encoder():
    return ClipEncoder(str(clip_path()), device="cpu")


@pytest.fixture(scope="module")
def features(encoder):
    return encoder.embed_pixels([encoder.preprocess(scene.image) for scene in SCENES])


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


def upload(client, array, **kwargs) -> dict:
    answer = client.post("/v1/embeddings/uploads", content=npy(array), **kwargs)
    assert answer.status_code == 201, answer.text
    return answer.json()


def train(client, name, **body) -> dict:
    answer = client.post("/v1/projections", json={"name": name, "parameters": FEW} | body)
    assert answer.status_code == 202, answer.text
    state = finished(client, answer.json()["id"])
    assert state["state"] == "succeeded", state["error"]
    return client.get(f"/v1/projections/{state['result']['projection']}").json()


def embed(client, model, **body) -> torch.Tensor:
    answer = client.post(
        "/v1/embeddings", json={"model": model, "input": ["a red star", data_url(SCENES[0].image)]} | body
    )
    assert answer.status_code == 200, answer.text
    return torch.tensor([entry["embedding"] for entry in answer.json()["data"]])


@pytest.fixture(scope="module")
def both(encoder, features):
    """What `embed` asks about, unprojected."""
    return torch.cat([encoder.embed_texts(["a red star"]), features[:1]])


@pytest.mark.parametrize("way", ["images", "numbers", "file", "upload"])
def test_the_model_embeds_by_the_methods_matrix_however_examples_come(client, features, both, way):
    images = [data_url(scene.image) for scene in SCENES]
    if way == "images":
        body = {"examples": [{"image": one, "label": label} for one, label in zip(images, SHAPES, strict=True)]}
    elif way == "numbers":
        rows = features.tolist()
        body = {"examples": [{"embedding": one, "label": label} for one, label in zip(rows, SHAPES, strict=True)]}
    elif way == "file":
        body = {"embeddings": base64.b64encode(npy(features)).decode(), "labels": SHAPES}
    else:
        body = {"uploads": [upload(client, part)["id"] for part in features.split(30)], "labels": SHAPES}
    card = train(client, way, **body)
    assert (card["model"], card["object"], card["about"]["method"]) == (
        f"demo-clip/{way}@1",
        "projection",
        "soft_triple",
    )
    labels = torch.tensor([sorted(set(SHAPES)).index(label) for label in SHAPES])
    expected = SoftTriple(**FEW).fit(Examples(features, labels=labels)).matrix
    got = embed(client, f"demo-clip/{way}")
    torch.testing.assert_close(got, normalize(both @ expected.T, dim=1), atol=1e-4, rtol=0)
    report = card["about"]["report"]
    assert (report["held_out"], report["unseen_labels"], report["dimensions"]) == (N, len(set(SHAPES)), 64)
    assert set(report["recall"]) == set(report["unprojected"]["recall"]) == {"1", "2", "4", "8"}


def test_fewer_dimensions_are_learned_without_labels_and_told(client, features, both):
    card = train(
        client, "small", method="kda", uploads=[upload(client, features)["id"]], parameters=FEW | {"dimensions": 7}
    )
    assert card["about"]["dimensions"] == 7
    assert (card["about"]["report"]["held_out"], len(card["about"]["report"]["warnings"])) == (0, 1)
    expected = KDA(dimensions=7, **FEW).fit(Examples(features)).embed(both)
    torch.testing.assert_close(embed(client, "demo-clip/small"), expected, atol=1e-4, rtol=0)
    assert embed(client, "demo-clip/small", dimensions=7).shape == (2, 7)
    body = {"model": "demo-clip/small", "input": "x", "dimensions": 64}
    detail = error(client.post("/v1/embeddings", json=body), 400)
    assert (detail["param"], "7" in detail["message"]) == ("dimensions", True)


def test_two_views_are_made_of_images_and_may_be_uploaded(client, features):
    fine = [f"{color} {shape}" for color, shape in zip(COLORS, SHAPES, strict=True)]
    coarse = {name: name.split()[0] for name in fine}
    images = [data_url(scene.image) for scene in SCENES]
    examples = [{"image": image, "label": label} for image, label in zip(images, fine, strict=True)]
    first, again = (
        train(client, "seeded", method="coins", examples=examples, label_map=coarse, seed=4) for _ in range(2)
    )
    assert first["about"] == again["about"]
    assert torch.equal(embed(client, "demo-clip/seeded@1"), embed(client, "demo-clip/seeded@2"))
    other = train(client, "seeded", method="coins", examples=examples, label_map=coarse, seed=5)
    assert not torch.equal(embed(client, other["model"]), embed(client, first["model"]))
    # It was judged by the fine labels.
    repeated = [label for label in set(fine) if fine.count(label) > 1]
    assert first["about"]["report"].get("unseen_labels", 0) == (len(repeated) if len(repeated) >= 4 else 0)

    noisy = normalize(features + 0.1 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0)), dim=1)
    card = upload(client, torch.stack([features, noisy], dim=1))
    assert (card["images"], card["views"], card["dimensions"]) == (N, 2, 64)
    about = train(client, "uploaded", method="coins", uploads=[card["id"]], labels=COLORS)["about"]
    assert about["report"]["held_out"] > 0


def test_versions_stay_and_the_name_means_the_newest(client, features, both):
    kept = upload(client, features)["id"]
    train(client, "versions", uploads=[kept], labels=SHAPES)
    before = embed(client, "demo-clip/versions")
    train(client, "versions", uploads=[kept], labels=COLORS)
    assert torch.equal(embed(client, "demo-clip/versions@1"), before)
    answer = client.post("/v1/embeddings", json={"model": "demo-clip/versions", "input": "x"}).json()
    assert answer["model"] == "demo-clip/versions@2"
    listed = [card["id"] for card in client.get("/v1/models").json()["data"]]
    for name in ("versions", "versions@1", "versions@2"):
        assert listed.count(f"demo-clip/{name}") == 1
        card = client.get(f"/v1/models/demo-clip/{name}").json()
        assert (card["id"], card["root"]) == (f"demo-clip/{name}", "demo-clip")
    assert client.delete("/v1/projections/versions@2").json() == {"id": "versions@2", "deleted": True}
    assert torch.equal(embed(client, "demo-clip/versions"), before)
    assert [one["version"] for one in client.get("/v1/projections").json()["data"] if one["name"] == "versions"] == [1]
    assert all("report" not in one["about"] for one in client.get("/v1/projections").json()["data"])
    client.delete("/v1/projections/versions")
    for path in ("/v1/projections/versions", "/v1/models/demo-clip/versions"):
        error(client.get(path), 404)
    detail = error(client.post("/v1/embeddings", json={"model": "demo-clip/versions", "input": "x"}), 404)
    assert (detail["param"], detail["code"]) == ("model", "model_not_found")


def test_nobody_else_has_it(client, features):
    kept = upload(client, features)["id"]
    train(client, "mine", uploads=[kept], labels=SHAPES)
    assert client.get("/v1/projections", headers=OTHER).json()["data"] == []
    assert not [c for c in client.get("/v1/models", headers=OTHER).json()["data"] if "/" in c["id"]]
    for method, path in [("GET", "/v1/projections/mine"), ("DELETE", "/v1/projections/mine")]:
        error(client.request(method, path, headers=OTHER), 404)
    error(client.get("/v1/models/demo-clip/mine", headers=OTHER), 404)
    error(client.post("/v1/embeddings", json={"model": "demo-clip/mine", "input": "x"}, headers=OTHER), 404)
    body = {"name": "theirs", "uploads": [kept], "labels": SHAPES}
    error(client.post("/v1/projections", json=body, headers=OTHER), 404)
    assert client.get("/v1/projections/mine").status_code == 200


def test_the_openai_client_uses_it_unchanged(client, features):
    train(client, "official", uploads=[upload(client, features)["id"]], labels=SHAPES)

    def forward(request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode()
        answer = client.request(
            request.method, path, content=request.content, headers={"Content-Type": "application/json"}
        )
        return httpx.Response(answer.status_code, content=answer.content, headers={"Content-Type": "application/json"})

    official = openai.OpenAI(
        base_url="http://test/v1", api_key="none", http_client=httpx.Client(transport=httpx.MockTransport(forward))
    )
    assert "demo-clip/official" in [model.id for model in official.models.list()]
    assert official.models.retrieve("demo-clip/official").id == "demo-clip/official"
    answer = official.embeddings.create(model="demo-clip/official", input=["a red star"], dimensions=64)
    expected = embed(client, "demo-clip/official")[0]
    assert answer.data[0].embedding == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(openai.NotFoundError):
        official.embeddings.create(model="demo-clip/unknown", input="x")


def test_a_restart_keeps_it(features, tmp_path):
    with clip_client(tmp_path) as first:
        train(first, "kept", uploads=[upload(first, features)["id"]], labels=SHAPES)
        before = embed(first, "demo-clip/kept")
    with clip_client(tmp_path) as second:
        assert torch.equal(embed(second, "demo-clip/kept"), before)
        assert "demo-clip/kept@1" in [card["id"] for card in second.get("/v1/models").json()["data"]]


def test_a_downloaded_file_is_taken_back_as_the_next_version(client, features):
    trained = train(client, "lent", uploads=[upload(client, features)["id"]], labels=SHAPES)
    answer = client.get("/v1/projections/lent/file")
    assert answer.headers["content-disposition"] == 'attachment; filename="lent.safetensors"'
    matrix = load(answer.content)["matrix"]
    torch.testing.assert_close(
        embed(client, "demo-clip/lent", input=data_url(SCENES[0].image)),
        normalize(features[:1] @ matrix.T, dim=1),
        atol=1e-4,
        rtol=0,
    )
    card = client.put("/v1/projections/lent/file", content=answer.content)
    assert card.status_code == 201
    assert card.json()["model"] == "demo-clip/lent@2"
    report = trained["about"].pop("report")
    assert report["held_out"] == N
    assert card.json()["about"] == trained["about"]
    assert torch.equal(embed(client, "demo-clip/lent@2"), embed(client, "demo-clip/lent@1"))
    assert client.get("/v1/projections/lent@2/file").content == answer.content
    error(client.get("/v1/projections/lent/file", headers=OTHER), 404)


def changed(data: bytes, matrix=None, **card) -> bytes:
    """The file with another matrix, or another card."""
    with io.BytesIO(data) as file:
        header = json.loads(file.read(8 + int.from_bytes(data[:8], "little"))[8:])
    about = json.loads(header["__metadata__"]["covervlm"]) | card
    tensors = load(data) if matrix is None else {"matrix": torch.as_tensor(matrix)}
    return save(tensors, metadata={"covervlm": json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": np.eye(63, dtype=np.float32)}, "another model"),
        ({"fingerprint": "another"}, "another model"),
        ({"matrix": np.ones((65, 64), np.float32)}, "may make 64 at most"),
        ({"matrix": np.full((3, 64), np.nan, np.float32)}, "not a projection"),
        ({"matrix": np.full((3, 64), 1e38, np.float32)}, "not a projection"),
        ({"matrix": np.zeros((3, 64), np.float32)}, "not a projection"),
        ({"matrix": np.ones(64, np.float32)}, "not a projection"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(client, features, change, message):
    train(client, "whole", uploads=[upload(client, features)["id"]], labels=SHAPES)
    file = client.get("/v1/projections/whole/file").content
    detail = error(client.put("/v1/projections/whole/file", content=changed(file, **change)), 400)
    assert (detail["code"], message in detail["message"]) == ("invalid_tensors", True)
    assert "neither a .npy nor" in error(client.put("/v1/projections/whole/file", content=b"x" * 99), 400)["message"]


def one(label, **fields) -> dict:
    return {"embedding": [0.1] * 64, "label": label, **fields}


TWO_VIEWS = base64.b64encode(npy(np.random.default_rng(0).normal(size=(4, 2, 64)).astype(np.float32))).decode()
TWICE = base64.b64encode(npy(np.repeat(np.eye(4, 64, dtype=np.float32)[:, None], 2, axis=1))).decode()
ONE_VIEW = base64.b64encode(npy(np.eye(4, 64, dtype=np.float32))).decode()
AABB = {"labels": list("aabb")}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"examples": [one("a"), one("a"), one("b")], "method": "coins"}, None, "needs two views"),
        ({"embeddings": ONE_VIEW, "method": "coins", **AABB}, None, "this method needs two"),
        ({"embeddings": TWICE, "method": "coins", **AABB}, None, "first ones again"),
        ({"embeddings": TWO_VIEWS, **AABB}, None, "this method takes one"),
        ({"embeddings": ONE_VIEW}, None, "labelled 'examples'"),
        ({"images": ["x"]}, None, "labelled 'examples'"),
        ({"method": "kda"}, "images", "No images"),
        ({"embeddings": ONE_VIEW, "labels": ["a", "b"]}, "labels", "4 images and embeddings, but 2 labels"),
        ({"examples": [one("a"), one("a")]}, "examples[0].label", "two classes"),
        ({"examples": [one("a"), one("b")]}, "examples[0].label", "one example only"),
        ({"examples": [one("a", group="g"), one("a"), one("b")]}, None, "is for classifiers"),
        ({"examples": [one("a", id="x"), one("a", id="x"), one("b")]}, "examples[1].id", "twice"),
        ({"embeddings": ONE_VIEW, **AABB, "parameters": {"dimensions": 65}}, "parameters.dimensions", "at most 64"),
        ({"embeddings": ONE_VIEW, **AABB, "parameters": {"landmarks": 5}}, "parameters.landmarks", "Unknown"),
        ({"embeddings": ONE_VIEW, **AABB, "method": "sea"}, "method", "soft_triple"),
        ({"embeddings": ONE_VIEW, **AABB, "name": "a/b"}, "name", "pattern"),
        ({"embeddings": ONE_VIEW, **AABB, "classes": ["a"]}, "classes", "Unknown"),
    ],
)
def test_what_teaches_nothing_is_refused_by_name_and_starts_no_job(client, body, param, message):
    before = len(client.get("/v1/jobs").json()["data"])
    detail = error(client.post("/v1/projections", json={"name": "never", **body}), 400)
    assert (detail["param"], message in detail["message"]) == (param, True), detail
    assert len(client.get("/v1/jobs").json()["data"]) == before


def test_two_views_are_no_classifiers_examples(client, features):
    kept = upload(client, torch.stack([features, features.flip(0)], dim=1))["id"]
    body = {"name": "never", "uploads": [kept], "labels": SHAPES}
    assert "takes one" in error(client.post("/v1/classifiers", json=body), 400)["message"]


def test_a_job_of_blank_pictures_fails_with_a_reason(client):
    from PIL import Image

    black = data_url(Image.new("RGB", (20, 20)))
    examples = [{"image": black, "label": label} for label in "aabb"]
    job = client.post("/v1/projections", json={"name": "never", "method": "coins", "examples": examples})
    assert finished(client, job.json()["id"])["error"]["code"] == "no_second_views"
