"""`covervlm train`: labels from folders or a CSV, a report, and a classifier that `classify` uses."""

import csv
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from covervlm.clients import Client
from covervlm.server.cli.train import labelled
from tests.server.api.clip_app import scenes

SCENES = [scene for scene in scenes(40) if scene.objects[0].shape in ("star", "circle")]
FEW = ["--method", "linear", "--set", "iterations=20"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder for each shape, and a CSV with the same pictures beside them."""
    folder = tmp_path_factory.mktemp("photos")
    lines = ["path,label,group"]
    for number, scene in enumerate(SCENES):
        shape = scene.objects[0].shape
        path = folder / shape / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        scene.image.save(path)
        lines.append(f"{shape}/{number}.png,{shape},{scene.objects[0].color}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return folder


def test_folders_are_labels_and_the_report_is_that_of_the_server(served, photos, report):
    told = report("train", "--url", served, "shapes", photos, *FEW)
    assert told["classifier"] == "shapes@1"
    with Client(served) as client:
        assert told["report"] == client.classifiers.get("shapes@1").report
    assert told["report"]["held_out"] == len(SCENES)
    assert {one["name"] for one in told["report"]["classes"]} == {"star", "circle"}
    assert all(mistake["id"].startswith(str(photos)) for mistake in told["report"]["mistakes"])


def test_a_csv_may_have_groups_and_its_paths_begin_where_it_lies(served, photos, report):
    told = report("train", "--url", served, "grouped", photos / "labels.csv", *FEW)["report"]
    assert {one["name"] for one in told["groups"]} == {scene.objects[0].color for scene in SCENES}
    assert {one.path for one in labelled(photos / "labels.csv")} == {one.path for one in labelled(photos)}


def test_a_table_may_be_parquet(served, photos, report, tmp_path):
    columns = {"path": [], "label": [], "group": []}
    for row in csv.DictReader((photos / "labels.csv").open(encoding="utf-8-sig")):
        columns["path"].append(str(photos / row["path"]))
        columns["label"].append(row["label"])
        columns["group"].append(row["group"])
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "labels.parquet")
    told = report("train", "--url", served, "parquet", tmp_path / "labels.parquet", *FEW)["report"]
    assert (
        told["groups"] == report("train", "--url", served, "parquet", photos / "labels.csv", *FEW)["report"]["groups"]
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_embeddings_are_learned_from_with_the_labels_of_a_table(served, photos, report, tmp_path, suffix):
    paths = sorted(photos.glob("*/*.png"))
    with Client(served) as client:
        np.save(tmp_path / "photos.npy", np.asarray(client.embed_images(paths)))
    columns = {"label": [path.parent.name for path in paths], "id": [str(path) for path in paths]}
    table = tmp_path / f"labels{suffix}"
    if suffix == ".csv":
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    else:
        pyarrow.parquet.write_table(pyarrow.table(columns), table)
    given = ("--embeddings", tmp_path / "photos.npy")
    told = report("train", "--url", served, "embedded", table, *given, *FEW)["report"]
    whole = report("train", "--url", served, "embedded", photos, *FEW)["report"]
    assert (told["held_out"], told["classes"]) == (whole["held_out"], whole["classes"])
    few = ("--projection", "soft_triple", "--set", "epochs=2")
    assert report("train", "--url", served, "table", table, *given, *few)["report"]["held_out"] == 0


def test_a_trained_file_labels_without_a_server(scripted, photos, run, report, tmp_path):
    file = tmp_path / "shapes.safetensors"
    status, out, err = run("train", "shapes", photos, *FEW, "--out", file)
    assert (status, err) == (0, "")
    first, header, *rows = out.splitlines()
    assert first.startswith(f"shapes@1: {len(SCENES)} pictures")
    assert header.split() == ["method", "accuracy", "95", "%", "interval", "class", "mean", "worst"]
    assert {row.split()[0] for row in rows} == {"linear", "zero_shot"}
    labels = report("classify", photos / "star", "--classifier", file)["images"]
    right = [one["label"] == "star" for one in labels]
    assert sum(right) > len(right) / 2


def test_a_file_is_on_the_server_while_it_is_used(served, photos, run, tmp_path):
    file = tmp_path / "shapes.safetensors"
    assert run("train", "--url", served, "shapes", photos, *FEW, "--out", file)[0] == 0
    picture = next((photos / "star").iterdir())
    status, out, _ = run("classify", "--url", served, picture, "--classifier", file, "--abstain-below", "1")
    assert (status, out.split("\t")[1]) == (0, "?")
    with Client(served) as client:
        assert "from-a-file" not in {card.name for card in client.classifiers.list()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\na.png,x\n", "must name the columns"),
        ("path,label\na.png,x\n", "too few"),
        ("path,label\n", "names no pictures"),
        ("path,label\n{star},x\n{circle},x\n", "two classes"),
        ("path,label\n{star},x\n{circle},y\n", "one example only"),
    ],
)
def test_what_cannot_be_learned_from_is_told(served, photos, run, tmp_path, text, words):
    table = tmp_path / "labels.csv"
    star, circle = (next((photos / shape).iterdir()) for shape in ("star", "circle"))
    table.write_text(text.format(star=star, circle=circle))
    status, out, err = run("train", "--url", served, "never", table)
    assert (status != 0, out) == (True, "")
    assert words in err


def test_a_picture_that_is_none_is_left_out_and_told_of(served, photos, run, tmp_path):
    paths = sorted(photos.glob("*/*.png"))
    (tmp_path / "none.png").write_bytes(b"no picture")
    rows = [f"{path},{path.parent.name}" for path in paths] + ["none.png,star"]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    status, out, err = run("train", "--url", served, "most", tmp_path / "labels.csv", *FEW, "--json")
    assert status == 1
    assert json.loads(out)["report"]["held_out"] == len(SCENES)
    assert "none.png: The data is not an image" in err


def test_a_folder_without_folders_is_refused(served, folder, run):
    status, _, err = run("train", "--url", served, "never", folder)
    assert (status, "holds no folders of pictures" in err) == (2, True)


def test_a_file_that_cannot_be_written_is_told_before_anything_is_learned(scripted, photos, run, tmp_path):
    status, _, err = run("train", "birds", photos, "--out", tmp_path / "nowhere" / "birds.safetensors")
    assert status == 2
    assert "there is no folder" in err
    assert not hasattr(scripted, "settings"), "a server was made"
