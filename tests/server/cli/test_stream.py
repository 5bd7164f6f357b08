"""`covervlm stream` labels files and paths from a pipe as they come, and leaves a stream behind only where asked to."""

import io
import json
import sys

import pytest

from covervlm.clients import Client
from covervlm.server.cli import stream
from tests.server.api.clip_app import SHAPES

CLASSES = ("--classes", ",".join(SHAPES))


@pytest.fixture(scope="module")
def client(served):
    with Client(served) as client:
        yield client


def paths(folder):
    return sorted(folder.glob("*.png"))


def read(done):
    """The lines of JSON of a command that went well: the pictures', and the last."""
    status, out, err = done
    assert (status, err) == (0, "")
    *labelled, end = map(json.loads, out.splitlines())
    return labelled, end


@pytest.mark.parametrize("method", ["onzeta", "coke"])
def test_every_picture_of_a_folder_is_answered_as_by_the_client(served, client, folder, run, monkeypatch, method):
    monkeypatch.setattr(stream, "AT_ONCE", 5)
    options = ("--method", method, "--horizon", 20, "--top", 2, "--json")
    labelled, end = read(run("stream", "--url", served, folder, *CLASSES, *options))
    expected = client.streams.create(SHAPES, 20, method=method)
    answers = [
        answer
        for start in range(0, 12, 5)
        for answer in client.streams.observe(expected, paths(folder)[start : start + 5], top=2)
    ]
    assert [one["image"] for one in labelled] == [str(path) for path in paths(folder)]
    for one, answer in zip(labelled, answers, strict=True):
        assert (one["label"], one["confidence"]) == (answer.label, pytest.approx(answer.confidence, abs=1e-3))
        assert [entry["label"] for entry in one["top"]] == [label for label, _ in answer.top]
    state = client.streams.get(expected)
    assert (end["stream"], end["observed"]) == (None, 12)
    assert [(one["label"], one["size"]) for one in end["groups"]] == [(one.label, one.size) for one in state.groups]
    assert [one["drift"] for one in end["groups"]] == pytest.approx([one.drift for one in state.groups], abs=1e-3)
    client.streams.delete(expected)
    assert client.streams.list() == []


def test_a_path_from_a_pipe_is_answered_before_the_next_one_is_there(served, folder, run, monkeypatch, capsys):
    shown = []

    def pipe():
        yield f"{folder}/00.png\n"
        shown.append(capsys.readouterr().out)
        yield "\n"
        yield f"{folder}/01.png\r\n"

    monkeypatch.setattr(sys, "stdin", pipe())
    status, out, err = run("stream", "--url", served, "-", *CLASSES, "--horizon", "12")
    assert (status, err) == (0, "")
    assert [line.split("\t")[0] for line in shown[0].splitlines()] == [f"{folder}/00.png"]
    assert out.startswith(f"{folder}/01.png\t")


def test_the_end_tells_sizes_where_the_method_counts_them(served, folder, run):
    for method, size in (("onzeta", "-"), ("coke", None)):
        status, out, err = run("stream", "--url", served, folder, *CLASSES, "--method", method)
        assert (status, err) == (0, "")
        labelled, end = out.split("\n\n")
        assert len(labelled.splitlines()) == 12
        header, *rows = [line.split() for line in end.splitlines()]
        assert header == ["label", "size", "drift"]
        assert sorted(row[0] for row in rows) == sorted(SHAPES)
        assert {row[1] for row in rows} == {"-"} if size else sum(int(row[1]) for row in rows) == 12


def test_a_kept_stream_goes_on_where_it_was(served, client, folder, run):
    first, end = read(run("stream", "--url", served, *paths(folder)[:7], *CLASSES, "--horizon", 12, "--keep", "--json"))
    second, last = read(run("stream", "--url", served, *paths(folder)[7:], "--name", end["stream"], "--json"))
    assert (last["stream"], last["observed"]) == (end["stream"], 12)
    whole, state = read(run("stream", "--url", served, folder, *CLASSES, "--horizon", 12, "--json"))
    assert [one["label"] for one in first + second] == [one["label"] for one in whole]
    assert [one["drift"] for one in last["groups"]] == pytest.approx(
        [one["drift"] for one in state["groups"]], abs=1e-3
    )
    status, out, _ = run("stream", "--url", served, folder / "00.png", "--name", end["stream"])
    assert (status, out.splitlines()[-1]) == (0, f"13 pictures observed; go on with --name {end['stream']}")
    client.streams.delete(end["stream"])


def test_a_model_of_its_own_streams_too_and_leaves_nothing_behind(scripted, served, folder, run):
    own = run("stream", folder, *CLASSES)
    assert own == run("stream", "--url", served, folder, *CLASSES)
    assert not scripted.settings.data_dir.exists()


def test_pictures_that_cannot_be_used_teach_nothing_and_are_listed_at_the_end(served, folder, broken, run, monkeypatch):
    whole = run("stream", "--url", served, folder, *CLASSES, "--horizon", 12)[1]
    status, out, err = run("stream", "--url", served, broken, *CLASSES, "--horizon", 12)
    assert (status, out.replace(str(broken), str(folder))) == (1, whole)
    for words in (f"{broken}/03b.png: ", f"{broken}/zz.jpg: The data is not an image", "2 of the pictures could not"):
        assert words in err
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{folder}/00.png\n{folder}/none.png\n{folder}\n{broken}/zz.jpg\n"))
    status, out, err = run("stream", "--url", served, "-", *CLASSES, "--horizon", 12, "--json")
    assert (status, len(out.splitlines()), json.loads(out.splitlines()[-1])["observed"]) == (1, 2, 1)
    assert f"{folder}/none.png: No such file or directory" in err
    assert err.endswith("3 of the pictures could not be used\n")


def test_what_ends_the_command_early_deletes_the_stream_too(served, client, folder, run, monkeypatch):
    def pipe():
        yield f"{folder}/00.png\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", pipe())
    assert run("stream", "--url", served, "-", *CLASSES, "--horizon", "12")[0] == 130
    assert client.streams.list() == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["{folder}", "--classes", "a,b", "--set", "ratio=0.5"], 1, "parameters.ratio"),
        (["{folder}", "--classes", "a,b", "--method", "magic"], 2, "invalid choice"),
        (["{folder}", "--classes", "a"], 1, "classes"),
        (["{folder}", "--name", "nobody"], 1, "nobody"),
        (["{folder}", "--name", "nobody", "--horizon", "5"], 2, "are for a new stream"),
        (["-", "--classes", "a,b"], 2, "say so with --horizon"),
        (["{empty}", "--classes", "a,b"], 2, "no pictures found"),
    ],
)
def test_what_is_wrong_is_told(served, folder, tmp_path, run, arguments, status, words):
    done = run("stream", "--url", served, *(a.format(folder=folder, empty=tmp_path) for a in arguments))
    assert (done[0], done[1], words in done[2]) == (status, "", True), done[2]


@pytest.mark.parametrize("option", [(*CLASSES, "--keep"), ("--name", "ID")])
def test_a_stream_cannot_be_kept_by_a_server_that_ends_with_the_command(scripted, folder, run, option):
    status, out, err = run("stream", folder, *option)
    assert (status, out, "--url" in err) == (2, "", True)
    assert not hasattr(scripted, "settings"), "a server was made"
