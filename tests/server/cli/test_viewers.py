"""Files of points by Embedding Atlas's own code: what it reads of them, and what it hands on to its page."""

import io

import numpy as np
import pyarrow.parquet
import pytest

from covervlm.clients import Client
from tests.server.api.clip_app import COLORS, SHAPES

pytestmark = pytest.mark.viewers


@pytest.mark.parametrize("command", ["classify", "cluster"])
def test_embedding_atlas_reads_places_labels_and_vectors(served, folder, report, tmp_path, command):
    from embedding_atlas.utils import load_pandas_data, to_parquet_bytes

    out = tmp_path / "points.parquet"
    options = {
        "classify": ("--classes", ",".join(SHAPES)),
        "cluster": ("--aspect", "color", "--words", ",".join(COLORS), "--clusters", 3),
    }
    report(command, "--url", served, folder, *options[command], "--points", out)
    read = load_pandas_data(str(out))
    pictures = sorted(folder.glob("*.png"))
    assert read["filepath"].tolist() == [str(picture) for picture in pictures]
    assert set(read["label"]) <= {*SHAPES, *COLORS, *(f"{color} (2)" for color in COLORS)}
    with Client(served) as client:
        expected = np.asarray(client.embed_images(pictures))
    for frame in (read, pyarrow.parquet.read_table(io.BytesIO(to_parquet_bytes(read))).to_pandas()):
        assert frame[["x", "y"]].dtypes.tolist() == [np.float32, np.float32]
        assert np.isfinite(frame[["x", "y"]].to_numpy()).all()
        np.testing.assert_allclose(np.stack(frame["vector"]), expected, atol=1e-5)


def test_embedding_atlas_reads_what_the_api_answers(served, folder, tmp_path):
    from embedding_atlas.utils import load_pandas_data

    pictures = sorted(folder.glob("*.png"))
    labels, groups = tmp_path / "labels.parquet", tmp_path / "groups.parquet"
    with Client(served) as client:
        labels.write_bytes(client.classify_points(pictures, SHAPES))
        job = client.cluster(pictures, "color", words=COLORS, clusters=3)
        names = client.jobs.wait(job).names
        groups.write_bytes(client.jobs.points(job))
        expected = np.asarray(client.embed_images(pictures))
    read = load_pandas_data(str(labels))
    np.testing.assert_allclose(np.stack(read["vector"]), expected, atol=1e-5)
    assert set(read["label"]) <= set(SHAPES)
    assert load_pandas_data(str(groups))["label"].tolist() == names
    for frame in (read, load_pandas_data(str(groups))):
        assert frame[["x", "y"]].dtypes.tolist() == [np.float32, np.float32]
