"""Files of points: what `classify` and `cluster` found, with the pictures' vectors and places in a plane."""

import sys

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from covervlm.clients import Client
from tests.server.api.clip_app import COLORS, SHAPES


def vectors(served, folder):
    with Client(served) as client:
        return np.asarray(client.embed_images(sorted(folder.glob("*.png"))))


def test_labels_come_with_vectors_and_the_plane_of_largest_variance(served, folder, report, tmp_path):
    out = tmp_path / "points.parquet"
    labelled = report("classify", "--url", served, folder, "--classes", ",".join(SHAPES), "--points", out)["images"]
    read = pandas.read_parquet(out)
    assert list(read) == ["filepath", "label", "confidence", "margin", "abstained", "x", "y", "vector"]
    assert read["filepath"].tolist() == [one["image"] for one in labelled]
    for name in ("label", "confidence", "margin", "abstained"):
        assert read[name].tolist() == [one[name] for one in labelled]
    rows = np.stack(read["vector"])
    np.testing.assert_allclose(rows, vectors(served, folder), atol=1e-5)
    # No two directions hold more of the variance than the first two of the singular value decomposition.
    centred = rows - rows.mean(axis=0)
    held = np.linalg.svd(centred, compute_uv=False)[:2]
    np.testing.assert_allclose(read[["x", "y"]].to_numpy().std(axis=0) * np.sqrt(len(rows)), held, rtol=1e-3)


def test_the_columns_have_the_types_that_viewers_take(served, folder, run, tmp_path):
    out = tmp_path / "points.parquet"
    run("classify", "--url", served, folder, "--classes", ",".join(SHAPES), "--points", out)
    schema = pyarrow.parquet.read_schema(out)
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "filepath": "string",
        "label": "string",
        "confidence": "double",
        "margin": "double",
        "abstained": "bool",
        "x": "float",
        "y": "float",
        "vector": "list<element: float>",
    }


def test_groups_lie_where_their_clustering_has_put_them(served, folder, report, tmp_path):
    out = tmp_path / "groups.parquet"
    words = ",".join(COLORS)
    groups = report(
        *("cluster", "--url", served, folder, "--aspect", "color", "--words", words, "--clusters", 3, "--points", out)
    )["clusters"]
    read = pandas.read_parquet(out)
    assert list(read) == ["filepath", "label", "x", "y", "vector"]
    found = {group["name"]: set(group["images"]) for group in groups}
    assert {name: set(rows["filepath"]) for name, rows in read.groupby("label")} == found
    np.testing.assert_allclose(np.stack(read["vector"]), vectors(served, folder), atol=1e-5)
    with Client(served) as client:
        job = client.cluster(sorted(folder.glob("*.png")), "color", words=COLORS, clusters=3)
        np.testing.assert_allclose(read[["x", "y"]], client.jobs.wait(job).projection, atol=1e-4)


def test_pictures_that_cannot_be_used_have_no_row(served, broken, run, tmp_path):
    out = tmp_path / "points.parquet"
    assert run("classify", "--url", served, broken, "--classes", ",".join(SHAPES), "--points", out)[0] == 1
    assert len(pandas.read_parquet(out)) == 12


@pytest.mark.parametrize("command", ["classify --classes a,b", "cluster --aspect color --words red,blue"])
@pytest.mark.parametrize(
    ("name", "lacking", "words"),
    [
        ("points.csv", None, "ends in .parquet"),
        ("nowhere/points.parquet", None, "there is no folder"),
        ("points.parquet", "pyarrow", "pip install pyarrow"),
        ("points.parquet", "numpy", "pip install numpy"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_anything_is_asked(
    scripted, folder, run, tmp_path, monkeypatch, command, name, lacking, words
):
    if lacking:
        monkeypatch.setitem(sys.modules, lacking, None)
    status, out, err = run(*command.split()[:1], folder, *command.split()[1:], "--points", tmp_path / name)
    assert (status, out, words in err) == (2, "", True), err
    assert not hasattr(scripted, "settings"), "a server was made"
    assert not list(tmp_path.iterdir())
