"""What no method can learn from is refused alike by all of them, and nothing of it is lost or kept."""

import base64
import io

import numpy as np
import pytest

from covervlm.server.clip.methods.registry import method_names
from tests.server.api.clip_app import clip_client, error, finished

D = 64
CLASSIFIERS = [("/v1/classifiers", method) for method in (*method_names("choose"), *method_names("train"))]
PROJECTIONS = [("/v1/projections", method) for method in method_names("project")]
every_method = pytest.mark.parametrize(("path", "method"), [*CLASSIFIERS, *PROJECTIONS])


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with clip_client(tmp_path_factory.mktemp("data")) as client:
        yield client


def npy(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows.astype(np.float32))
    return file.getvalue()


def embeddings(method: str, n: int, d: int = D) -> np.ndarray:
    """As the method takes them: two views of each for `coins`."""
    return np.random.default_rng(0).normal(size=(n, 2, d) if method == "coins" else (n, d))


def body(method: str, labels: str, **more) -> dict:
    file = base64.b64encode(npy(embeddings(method, len(labels)))).decode()
    return {"name": "x", "method": method, "embeddings": file, "labels": list(labels)} | more


@every_method
@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"labels": list("aaaa")}, "labels[0]", "two classes"),
        ({"labels": ["a"]}, "labels", "4 images and embeddings, but 1 labels"),
        ({"labels": list("abcd")}, "labels[0]", "none can be held out"),
        ({"labels": list("aabc"), "label_map": {"a": "x", "b": "y"}}, "labels[3]", "is none of the classes"),
        ({"labels": list("aabb"), "ids": list("1231")}, "ids[3]", "given twice"),
        ({"labels": ["a", "a", "b", ""]}, "labels[3]", "is empty"),
    ],
)
def test_labels_that_teach_nothing_are_refused_by_name(client, path, method, change, param, words):
    before = len(client.get("/v1/jobs").json()["data"])
    detail = error(client.post(path, json=body(method, "aabb") | change), 400)
    assert (detail["param"], words in detail["message"]) == (param, True), detail
    assert len(client.get("/v1/jobs").json()["data"]) == before


@pytest.mark.parametrize("method", [method for _, method in CLASSIFIERS])
def test_a_label_of_no_class_is_refused_by_name(client, method):
    detail = error(client.post("/v1/classifiers", json=body(method, "aabc", classes=["a", "b"])), 400)
    assert (detail["param"], "'c' is none of the classes" in detail["message"]) == ("labels[3]", True)


@every_method
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda rows: rows * np.where(np.arange(len(rows)) == 2, np.nan, 1).reshape(-1, *[1] * (rows.ndim - 1)), "NaN"),
        (lambda rows: rows * np.where(np.arange(len(rows)) == 2, np.inf, 1).reshape(-1, *[1] * (rows.ndim - 1)), "NaN"),
        (lambda rows: rows[..., :-1], "63 dimensions"),
        (lambda rows: rows[:0], "no embeddings"),
    ],
)
def test_embeddings_that_are_none_are_refused_in_the_body_and_as_uploads(client, path, method, spoil, words):
    file = npy(spoil(embeddings(method, 4)))
    given = body(method, "aabb") | {"embeddings": base64.b64encode(file).decode()}
    assert words in error(client.post(path, json=given), 400)["message"]
    assert words in error(client.post("/v1/embeddings/uploads", content=file), 400)["message"]


@pytest.mark.parametrize(("path", "method"), [*CLASSIFIERS, *[one for one in PROJECTIONS if one[1] != "coins"]])
def test_examples_of_mixed_dimensions_are_refused_by_name(client, path, method):
    examples = [{"embedding": [0.5] * D, "label": label} for label in "aabb"]
    examples[2]["embedding"] = [0.5] * (D - 1)
    detail = error(client.post(path, json={"name": "x", "method": method, "examples": examples}), 400)
    assert (detail["param"], "63 dimensions" in detail["message"]) == ("examples[2].embedding", True)


@pytest.mark.parametrize("method", [method for _, method in CLASSIFIERS if method != "auto"])
def test_a_class_of_one_example_stays_in_learning_and_it_and_a_group_of_one_are_told_of(client, method):
    few = {"iterations": 5} if method in ("linear", "groups") else {"epochs": 2}
    given = body(method, "aaaabbbbc", groups=list("ggghgggg1"), parameters=few)
    answer = client.post("/v1/classifiers", json=given)
    assert answer.status_code == 202, answer.text
    state = finished(client, answer.json()["id"])
    assert state["state"] == "succeeded", state["error"]
    about = client.get("/v1/classifiers/x").json()["about"]
    assert about["classes"] == ["a", "b", "c"]
    report = about["report"]
    assert [(one["examples"], one["held_out"]) for one in report["classes"]] == [(4, 4), (4, 4), (1, 0)]
    assert len([words for words in report["warnings"] if "one example" in words]) == 2


def test_a_label_that_is_no_text_for_the_model_is_named_where_it_stands(client):
    long = "bird " * 90
    labels = ["a", "a", long, long]
    detail = error(client.post("/v1/classifiers", json=body("linear", "aabb") | {"labels": labels}), 400)
    assert (detail["param"], detail["code"]) == ("labels[2]", "context_length_exceeded")
    detail = error(
        client.post("/v1/classifiers", json=body("linear", "aabb", label_map={"a": "x", "b": "y", "c": long})), 400
    )
    assert (detail["param"], detail["code"]) == ("label_map", "context_length_exceeded")
    detail = error(client.post("/v1/classifiers", json=body("linear", "aabb", classes=["a", "b", long])), 400)
    assert detail["param"] == "classes[2]"


def test_examples_that_are_there_twice_are_told_of(client):
    once = embeddings("linear", 8)
    for rows, labels, told in (
        (once, "aaaabbbb", []),
        (np.concatenate([once[:6], once[:2] + 1e-7]), "aaabbbaa", ["2 examples equal another"]),
        (
            np.concatenate([once[:6], once[:2]]),
            "aaabbbab",
            ["2 examples equal another", "1 of these have another label"],
        ),
    ):
        given = body("linear", labels, embeddings=base64.b64encode(npy(rows)).decode(), parameters={"iterations": 5})
        assert finished(client, client.post("/v1/classifiers", json=given).json()["id"])["state"] == "succeeded"
        warnings = client.get("/v1/classifiers/x").json()["about"]["report"]["warnings"]
        assert len(warnings) == len(told), warnings
        assert all(one.startswith(words) for one, words in zip(warnings, told, strict=True)), warnings
