"""Classifiers learned from labels over HTTP: what they answer, what is told of their worth, what is refused."""

import base64
import io
from collections import Counter

import numpy as np
import pytest
import torch

from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.linear import Linear
from covervlm.server.clip.methods.registry import method_names
from covervlm.server.demo import clip_path
from tests.server.api.clip_app import SHAPES, clip_client, error, finished, scenes
from tests.server.api.scripted import data_url

N = 40
SCENES = scenes(N)
LABELS = [scene.objects[0].shape for scene in SCENES]
COLORS = [scene.objects[0].color for scene in SCENES]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with clip_client(tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.fixture(scope="module")
def features():
    encoder = ClipEncoder(str(clip_path()), device="cpu")
    return encoder.embed_pixels([encoder.preprocess(scene.image) for scene in SCENES])


@pytest.fixture(scope="module")
def vectors(features):
    return [base64.b64encode(row.numpy().tobytes()).decode() for row in features]


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def given(vectors, **change):
    return [
        {"embedding": vector, "label": label, "group": color, "id": f"scene-{i}"} | change
        for i, (vector, label, color) in enumerate(zip(vectors, LABELS, COLORS, strict=True))
    ]


def train(client, name, **body):
    answer = client.post("/v1/classifiers", json={"name": name, **body})
    assert answer.status_code == 202, answer.text
    state = finished(client, answer.json()["id"])
    assert state["state"] == "succeeded", state["error"]
    return client.get(f"/v1/classifiers/{state['result']['classifier']}").json()["about"]


def labels_of(client, name, **body):
    images = [data_url(scene.image) for scene in SCENES]
    answer = client.post("/v1/classify", json={"images": images, "classifier": name, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


@pytest.mark.parametrize("way", ["images", "numbers", "base64", "file", "upload", "mixed"])
def test_a_head_is_the_one_of_its_method_however_the_examples_come(client, features, vectors, way):
    images = [data_url(scene.image) for scene in SCENES]
    ways = {
        "images": [{"image": image} for image in images],
        "numbers": [{"embedding": row} for row in features.tolist()],
        "base64": [{"embedding": vector} for vector in vectors],
        "mixed": [{"embedding": vectors[i]} if i % 2 else {"image": images[i]} for i in range(N)],
    }
    if way in ways:
        body = {"examples": [part | {"label": label} for part, label in zip(ways[way], LABELS, strict=True)]}
    elif way == "file":
        body = {"embeddings": base64.b64encode(npy(features.numpy())).decode(), "labels": LABELS}
    else:
        parts = [client.post("/v1/embeddings/uploads", content=npy(part.numpy())).json() for part in features.split(25)]
        body = {"uploads": [part["id"] for part in parts], "labels": LABELS}
    about = train(client, way, method="linear", **body)
    classes = sorted(set(LABELS))
    assert (about["classes"], about["images"], about["method"]) == (classes, N, "linear")
    head = Linear().fit(Examples(features, labels=torch.tensor([classes.index(label) for label in LABELS])))
    expected = [classes[i] for i in head.logits(features).argmax(1).tolist()]
    assert [entry["label"] for entry in labels_of(client, way)] == expected


@pytest.mark.parametrize("method", method_names("train"))
def test_every_method_trains_reports_and_answers(client, vectors, method):
    few = {"epochs": 2} if method not in ("linear", "groups") else {"iterations": 5}
    about = train(client, method, examples=given(vectors), method=method, parameters=few)
    assert about["parameters"] | few == about["parameters"]
    assert [one["method"] for one in about["report"]["compared"]].count("zero_shot") == 1
    answers = labels_of(client, method, top=8)
    for answer in answers:
        assert sum(one["probability"] for one in answer["top"]) == pytest.approx(1, abs=1e-5)
        assert answer["margin"] == pytest.approx(
            answer["top"][0]["probability"] - answer["top"][1]["probability"], abs=1e-6
        )


def test_the_report_counts_what_was_held_out(client, vectors):
    report = train(client, "counted", examples=given(vectors), seed=3)["report"]
    counts = Counter(LABELS)
    held = {label: count for label, count in counts.items() if count > 1}
    assert report["held_out"] == sum(held.values()) == report["accuracy"]["held_out"]
    assert {one["name"]: one["examples"] for one in report["classes"]} == counts
    assert {one["name"]: one["held_out"] for one in report["classes"] if one["held_out"]} == held
    assert sum(one["held_out"] for one in report["groups"]) == report["held_out"]
    right = sum(round(one["value"] * one["held_out"]) for one in report["classes"] if one["held_out"])
    assert report["accuracy"]["value"] == pytest.approx(right / report["held_out"], abs=1e-4)
    wrong = report["held_out"] - right
    assert sum(one["count"] for one in report["confusions"]) == len(report["mistakes"]) == wrong
    for mistake in report["mistakes"]:
        assert LABELS[int(mistake["id"].removeprefix("scene-"))] == mistake["label"] != mistake["answered"]
    values = [one["value"] for one in report["groups"]]
    assert report["worst_group"]["value"] == min(values)
    best = max(one["class_mean"] for one in report["compared"])
    assert report["class_mean"] == best
    assert {"zero_shot", "linear"} <= {one["method"] for one in report["compared"]}
    for one in report["compared"]:
        assert one["gain"]["value"] == pytest.approx(report["accuracy"]["value"] - one["accuracy"]["value"], abs=2e-4)
        low, high = one["gain"]["interval"]
        assert low <= one["gain"]["value"] <= high
    kept = [one["answered"] for one in report["abstaining"]]
    assert kept == sorted(kept, reverse=True)
    again = train(client, "counted", examples=given(vectors), seed=3)
    assert again["report"] == report
    listed = client.get("/v1/classifiers").json()["data"]
    assert all("report" not in card["about"] for card in listed)


def test_unsure_answers_are_marked(client, vectors):
    train(client, "cautious", examples=given(vectors), method="linear")
    answers = labels_of(client, "cautious")
    middle = sorted(answer["confidence"] for answer in answers)[N // 2]
    for answer in labels_of(client, "cautious", abstain_below=middle):
        assert answer["abstained"] == (answer["confidence"] < middle)
    assert not any(answer["abstained"] for answer in answers)


def test_fine_labels_teach_their_classes_and_are_the_groups(client, vectors):
    fine = [f"{color} {label}" for color, label in zip(COLORS, LABELS, strict=True)]
    body = {"labels": fine, "label_map": {name: name.split()[1] for name in fine}}
    stacked = np.stack([np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors])
    body["embeddings"] = base64.b64encode(npy(stacked)).decode()
    about = train(client, "coarse", method="linear", **body)
    assert about["classes"] == sorted(set(LABELS))
    assert {one["name"] for one in about["report"]["groups"]} <= set(fine)


def test_a_prior_moves_answers_to_what_is_frequent(client, vectors):
    classes = sorted(set(LABELS))
    prior = {name: 1e9 if name == "star" else 1 for name in classes}
    about = train(client, "prior", examples=given(vectors), method="linear", prior=prior)
    assert {answer["label"] for answer in labels_of(client, "prior")} == {"star"}
    assert about["report"]["expected_accuracy"] == 1
    file = client.get("/v1/classifiers/prior/file").content
    assert client.put("/v1/classifiers/prior-copy/file", content=file).status_code == 201
    assert labels_of(client, "prior-copy") == labels_of(client, "prior")


def test_a_class_of_one_example_and_a_group_of_one_are_told_of(client, vectors):
    rows = given(vectors)[:12]
    rows = [row | {"label": "two" if i % 2 else "one", "group": "g"} for i, row in enumerate(rows)]
    rows[0] |= {"label": "rare"}
    rows[1] |= {"group": "lonely"}
    report = train(client, "rare", examples=rows, classes=["one", "two", "rare", "never"], method="linear")["report"]
    assert [(one["examples"], one["held_out"]) for one in report["classes"]] == [(5, 5), (6, 6), (1, 0), (0, 0)]
    assert report["classes"][2]["value"] is None
    assert [warning.split(":")[0] for warning in report["warnings"]] == [
        "1 classes have no example",
        "1 classes have one example, which is never held out",
        "1 groups have one example",
    ]


def rows(labels: str, **fields: list[str]) -> list[dict]:
    """Examples that are alike but for their labels and other fields."""
    columns = {"label": list(labels), **fields}
    return [
        {"embedding": [0.1] * 64, **dict(zip(columns, values, strict=True))}
        for values in zip(*columns.values(), strict=True)
    ]


ONE = rows("a")
FILE = {"embeddings": base64.b64encode(npy(np.eye(3, 64, dtype=np.float32))).decode()}
IMAGES = {"images": ["x"]}
AAB = {"labels": ["a", "a", "b"], **FILE}
MIXED = [ONE[0] | {"group": "g"}, *ONE]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"examples": ONE}, "examples[0].label", "two classes"),
        ({"examples": rows("aa")}, "examples[0].label", "two classes"),
        ({"examples": rows("ab")}, "examples[0].label", "one example only"),
        ({"examples": rows("aabc"), "classes": ["a", "b"]}, "examples[3].label", "'c' is none"),
        ({"examples": rows("aab", id=["x", "x", "y"])}, "examples[1].id", "twice"),
        ({"examples": [{"embedding": [0.1] * 63, "label": "a"}]}, "examples[0].embedding", "63 dimensions"),
        ({"examples": [{"embedding": [0.0] * 64, "label": "a"}]}, "examples[0].embedding", "zero throughout"),
        ({"examples": [{"embedding": "!", "label": "a"}]}, "examples[0].embedding", "base64"),
        ({"examples": [{"embedding": "AAAA", "label": "a"}]}, "examples[0].embedding", "base64"),
        ({"examples": [{"label": "a"}]}, "examples[0]", "either 'image' or 'embedding'"),
        ({"examples": [{"embedding": [0.1] * 64}]}, "examples[0].label", "Missing"),
        ({"examples": MIXED}, None, "every example has a group"),
        ({"examples": ONE, "method": "inmap"}, None, "without labels"),
        ({"examples": ONE, **IMAGES}, None, "into 'examples'"),
        ({"examples": ONE, "uploads": ["x"]}, None, "leave 'uploads'"),
        ({"method": "sea", "classes": SHAPES, **IMAGES}, None, "labelled 'examples'"),
        (IMAGES, None, "'classes' are needed"),
        ({"classes": SHAPES, "prior": {"a": 1}, **IMAGES}, None, "'prior' goes with labels"),
        ({"labels": ["a", "b"], "groups": ["g"]}, None, "2 labels, but 1 groups"),
        ({"labels": ["a", "b"]}, "images", "No images"),
        ({"labels": ["a", "b"], **FILE}, "labels", "3 images and embeddings, but 2 labels"),
        ({"labels": ["a", "a", "c"], "classes": ["a", "b"], **FILE}, "labels[2]", "'c' is none"),
        (AAB | {"prior": {"a": 1}}, "prior", "'b' has no share"),
        (AAB | {"prior": {"a": 0, "b": 1}}, "prior.a", "greater"),
        ({"labels": ["a", "a", "A"], **FILE}, "classes", "twice"),
        (AAB | {"method": "mlp", "parameters": {"hidden": 0}}, "parameters.hidden", "greater"),
        (AAB | {"parameters": {"eta": 1}}, "parameters.eta", "Unknown"),
    ],
)
def test_what_teaches_nothing_is_refused_by_name_and_starts_no_job(client, body, param, message):
    before = len(client.get("/v1/jobs").json()["data"])
    detail = error(client.post("/v1/classifiers", json={"name": "never", **body}), 400)
    assert (detail["param"], message in detail["message"]) == (param, True), detail
    assert len(client.get("/v1/jobs").json()["data"]) == before


def test_a_number_that_is_none_is_refused(client):
    body = '{"name": "never", "examples": [{"label": "a", "embedding": [NaN%s]}]}' % (", 1" * 63)
    detail = error(client.post("/v1/classifiers", content=body, headers={"Content-Type": "application/json"}), 400)
    assert detail["param"].startswith("examples[0].embedding")
