"""Results as Parquet files: of clusterings by their jobs, of labels by the Accept header."""

import asyncio
import io
import sys

import numpy as np
import pandas
import pyarrow.parquet
import pytest

from covervlm.server.api import points
from tests.server.api.clip_app import COLORS, OTHER, SHAPES, clip_client, error, finished, scenes, urls

PARQUET = "application/vnd.apache.parquet"
GROUPED = {"images": urls(12), "aspect": "color", "words": COLORS, "method": "clip_kmeans"}
LABELLED = {"images": urls(6), "classes": SHAPES}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with clip_client(tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.fixture(scope="module")
def clustering(client):
    """A finished clustering, as its job tells it."""
    return finished(client, client.post("/v1/clusterings", json=GROUPED).json()["id"])


def read(answer) -> pandas.DataFrame:
    assert (answer.status_code, answer.headers["content-type"]) == (200, PARQUET), answer.text
    return pandas.read_parquet(io.BytesIO(answer.content))


def test_a_clusterings_file_has_the_labels_and_places_of_its_result(client, clustering):
    answer = client.get(f"/v1/jobs/{clustering['id']}/points")
    table, result = read(answer), clustering["result"]
    assert list(table) == ["image", "label", "x", "y"]
    assert table["image"].tolist() == list(range(12))
    assert table["label"].tolist() == [result["clusters"][label]["name"] for label in result["labels"]]
    np.testing.assert_array_equal(table[["x", "y"]], np.asarray(result["projection"], "float32"))
    assert answer.headers["content-disposition"] == f'attachment; filename="{clustering["id"]}.parquet"'


def test_labels_come_with_the_embeddings_and_the_plane_of_largest_variance(client):
    found = client.post("/v1/classify", json=LABELLED | {"abstain_below": 0.9}).json()["data"]
    answer = client.post("/v1/classify", json=LABELLED | {"abstain_below": 0.9}, headers={"Accept": PARQUET})
    table = read(answer)
    assert list(table) == ["image", "label", "confidence", "margin", "abstained", "x", "y", "vector"]
    assert table["image"].tolist() == [one["index"] for one in found]
    for name in ("label", "confidence", "margin", "abstained"):
        assert table[name].tolist() == [one[name] for one in found]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in LABELLED["images"]]
    embedded = client.post("/v1/embeddings", json={"model": "demo-clip", "input": parts}).json()["data"]
    rows = np.stack(table["vector"])
    np.testing.assert_allclose(rows, [one["embedding"] for one in embedded], atol=1e-6)
    held = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)[:2]
    np.testing.assert_allclose(table[["x", "y"]].to_numpy().std(axis=0) * np.sqrt(len(rows)), held, rtol=1e-3)


def test_the_columns_have_the_types_that_viewers_take(client):
    answer = client.post("/v1/classify", json=LABELLED, headers={"Accept": PARQUET})
    schema = pyarrow.parquet.read_schema(io.BytesIO(answer.content))
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "image": "int64",
        "label": "string",
        "confidence": "double",
        "margin": "double",
        "abstained": "bool",
        "x": "float",
        "y": "float",
        "vector": "list<element: float>",
    }


def test_a_single_picture_is_a_point_at_the_origin(client):
    body = {"images": urls(1), "classes": SHAPES}
    table = read(client.post("/v1/classify", json=body, headers={"Accept": PARQUET}))
    assert table[["x", "y"]].to_numpy().tolist() == [[0.0, 0.0]]
    assert table["label"].tolist() == [scenes(1)[0].objects[0].shape]


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html,*/*;q=0.8", ""])
def test_whoever_does_not_ask_for_a_file_gets_json(client, accept):
    assert client.post("/v1/classify", json=LABELLED, headers={"Accept": accept}).json()["object"] == "list"


def test_a_refusal_stays_json(client):
    assert error(client.post("/v1/classify", json={"images": []}, headers={"Accept": PARQUET}), 400)


def test_another_owners_points_do_not_exist(client, clustering):
    theirs = client.get(f"/v1/jobs/{clustering['id']}/points", headers=OTHER)
    assert error(theirs, 404)["code"] == "job_not_found"


def test_an_unfinished_clustering_has_no_points_yet_and_a_cancelled_one_never(client):
    """A job learns for minutes, so that the clustering behind it waits."""
    long = {"name": "a", "classes": SHAPES, "images": urls(2), "parameters": {"iterations": 100_000, "tolerance": 0}}
    first = client.post("/v1/classifiers", json=long).json()["id"]
    waiting = client.post("/v1/clusterings", json=GROUPED).json()["id"]
    assert error(client.get(f"/v1/jobs/{waiting}/points"), 409)["code"] == "job_unfinished"
    for job in (waiting, first):
        client.delete(f"/v1/jobs/{job}")
        assert finished(client, job)["state"] == "cancelled"
    detail = error(client.get(f"/v1/jobs/{waiting}/points"), 404)
    assert detail["code"] == "no_points"
    assert "cancelled" in detail["message"]


def test_jobs_that_never_will_have_points_say_so(client):
    body = {"name": "a", "classes": SHAPES, "images": urls(1), "parameters": {"iterations": 1}}
    other = client.post("/v1/classifiers", json=body).json()["id"]
    assert finished(client, other)["state"] == "succeeded"
    detail = error(client.get(f"/v1/jobs/{other}/points"), 404)
    assert detail["code"] == "no_points"
    assert "is no clustering" in detail["message"]


@pytest.mark.parametrize("package", ["pyarrow", "numpy"])
def test_a_server_without_the_writer_says_what_to_install(client, clustering, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    for answer in (
        client.get(f"/v1/jobs/{clustering['id']}/points"),
        client.post("/v1/classify", json=LABELLED, headers={"Accept": PARQUET}),
    ):
        detail = error(answer, 406)
        assert detail["code"] == "no_parquet"
        assert f"pip install {package}" in detail["message"]


def test_files_are_written_in_threads(client, clustering, monkeypatch):
    plain, on_the_loop = points.write_points, []

    def watched(*args, **kwargs):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            on_the_loop.append(False)
        else:
            on_the_loop.append(True)
        return plain(*args, **kwargs)

    monkeypatch.setattr(points, "write_points", watched)
    read(client.get(f"/v1/jobs/{clustering['id']}/points"))
    read(client.post("/v1/classify", json=LABELLED, headers={"Accept": PARQUET}))
    assert on_the_loop == [False, False]
