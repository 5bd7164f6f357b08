"""`covervlm classify` over files and folders, by names and by a classifier of the server."""

from pathlib import Path

import pytest

from covervlm.clients import Client
from covervlm.server.cli import classify
from tests.server.api.clip_app import SHAPES, scenes


@pytest.fixture(scope="module")
def client(served):
    with Client(served) as client:
        yield client


def paths(folder):
    return [folder / f"{number:02}.png" for number in range(12)]


def test_every_picture_of_a_folder_is_labelled_as_by_the_client(served, client, folder, report, monkeypatch):
    monkeypatch.setattr(classify, "AT_ONCE", 5)
    labelled = report("classify", "--url", served, folder, "--classes", ", ".join(SHAPES), "--top", "3")["images"]
    assert [entry["image"] for entry in labelled] == [str(path) for path in paths(folder)]
    for entry, expected in zip(labelled, client.classify(paths(folder), SHAPES, top=3), strict=True):
        assert (entry["label"], entry["confidence"]) == (expected.label, pytest.approx(expected.confidence, abs=1e-4))
        assert [one["label"] for one in entry["top"]] == [label for label, _ in expected.top]
    right = [entry["label"] == scene.objects[0].shape for entry, scene in zip(labelled, scenes(12), strict=True)]
    assert sum(right) >= 8


def test_a_model_of_its_own_labels_too_and_leaves_nothing_behind(scripted, folder, run, served):
    arguments = [folder / "00.png", folder / "01.png", "--classes", ",".join(SHAPES), "--top", "2"]
    status, out, err = run("classify", *arguments)
    assert (status, err) == (0, "")
    assert out == run("classify", "--url", served, *arguments)[1]
    first = out.splitlines()[0].split("\t")
    assert first[0] == str(folder / "00.png")
    assert [cell.rsplit(" ", 1)[0] in SHAPES for cell in first[1:]] == [True, True]
    assert not scripted.settings.data_dir.exists()


def test_names_come_from_a_file_too(served, folder, report, tmp_path):
    names = tmp_path / "names.txt"
    # As Windows' editors write it.
    names.write_text("\r\n".join(SHAPES) + "\r\n\r\n", encoding="utf-8-sig", newline="")
    arguments = ["classify", "--url", served, folder / "03.png", "--classes"]
    assert report(*arguments, f"@{names}") == report(*arguments, ",".join(SHAPES))


def test_pictures_that_cannot_be_used_are_left_out_and_listed_at_the_end(served, folder, broken, run, monkeypatch):
    monkeypatch.setattr(classify, "AT_ONCE", 5)
    whole = run("classify", "--url", served, folder, "--classes", ",".join(SHAPES))[1]
    status, out, err = run("classify", "--url", served, broken, "--classes", ",".join(SHAPES))
    assert status == 1
    assert out.replace(str(broken), str(folder)) == whole
    assert f"{broken}/03b.png: " in err
    assert f"{broken}/zz.jpg: The data is not an image" in err
    assert err.endswith("2 of the pictures could not be used\n")


def test_a_file_that_cannot_be_read_is_left_out_too(served, folder, run, monkeypatch):
    read = Path.read_bytes

    def refuse(path):
        if path.name == "01.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    arguments = [folder / "00.png", folder / "01.png", "--classes", ",".join(SHAPES)]
    status, out, err = run("classify", "--url", served, *arguments)
    assert (status, out.count("\n")) == (1, 1)
    assert f"{folder}/01.png: Permission denied" in err


def test_a_classifier_of_the_server_labels(served, client, folder, report):
    job = client.classifiers.fit("for-cli", SHAPES, paths(folder), parameters={"iterations": 20})
    client.jobs.wait(job)
    labelled = report("classify", "--url", served, folder, "--classifier", "for-cli")["images"]
    expected = client.classify(paths(folder), classifier="for-cli", top=1)
    assert [entry["label"] for entry in labelled] == [answer.label for answer in expected]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["{folder}/none.png", "--classes", "a,b"], 1, "none.png: No such file or directory"),
        (["{empty}", "--classes", "a,b"], 2, "no pictures found"),
        (["{folder}/notes.txt", "--classes", "a,b"], 1, "notes.txt: The data is not an image"),
        (["{folder}", "--classifier", "nobody"], 1, "nobody"),
        (["{folder}", "--classifier", "{empty}/no.safetensors"], 1, "no.safetensors: there is no such file"),
        (["{folder}", "--classes", "@/no/such/file"], 2, "/no/such/file cannot be read"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(served, folder, tmp_path, run, arguments, status, words):
    done = run("classify", "--url", served, *(a.format(folder=folder, empty=tmp_path) for a in arguments))
    assert done[0] == status
    assert done[1] == ""
    assert words in done[2]
