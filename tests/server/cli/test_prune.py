"""`covervlm prune` with a model of its own and with a running server; tests/e2e runs it with the demo model."""

import re

import numpy as np
import pytest
from PIL import Image

from covervlm.clients.overlay import draw_overlay
from covervlm.server.core.errors import EngineError
from covervlm.server.core.generation import PruningPolicy


def test_it_draws_what_the_engine_keeps(scripted, photo, tmp_path, run):
    output = tmp_path / "overlay.png"
    status, out, err = run("prune", photo, "What color?", "--keep", "30", "-o", output)
    assert (status, out, err) == (0, "mmtok keeps 30 of 576 vision tokens, coverage 0.500, 1.2 ms\n", "")
    expected = draw_overlay(Image.open(photo), (24, 24), range(30))
    assert (np.asarray(Image.open(output)) == np.asarray(expected)).all()
    request = scripted.requests[0]
    assert list(request.messages[0].content[1:]) == ["What color?"]
    assert request.pruning == PruningPolicy(keep_tokens=30, return_indices=True)
    assert not scripted.started


def test_a_running_server_gives_the_same_report(scripted, served, photo, report):
    asked = report("prune", "--url", served, photo, "What?", "--keep", "2")
    assert asked == {
        "total": 576,
        "kept": 2,
        "method": "mmtok",
        "coverage": 0.5,
        "milliseconds": 1.25,
        "indices": [0, 1],
        "grid": [24, 24],
        "box": [0.0, 0.0, 96.0, 96.0],
        "prompt_tokens": 12,
        "seconds": asked["seconds"],
    }
    own = report("prune", photo, "What?", "--keep", "2")
    assert {**own, "seconds": None} == {**asked, "seconds": None}
    assert own["seconds"].keys() == asked["seconds"].keys()


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [
        ([], PruningPolicy(keep_tokens=64, return_indices=True)),
        (["--keep-ratio", "0.25", "--method", "random"], PruningPolicy("random", keep_ratio=0.25, return_indices=True)),
        (["--coverage", "0.9"], PruningPolicy(coverage=0.9, return_indices=True)),
    ],
)
def test_it_takes_every_kind_of_budget(served, served_engine, photo, run, arguments, policy):
    assert run("prune", "--url", served, photo, "What?", *arguments)[0] == 0
    assert served_engine.requests[-1].pruning == policy


def test_it_loads_the_model_that_is_named(scripted, photo, run):
    arguments = ["--model", "org/name", "--device", "cpu", "--dtype", "bfloat16"]
    assert run("prune", photo, "What?", *arguments)[0] == 0
    settings = scripted.settings
    assert (settings.model, settings.device, settings.dtype) == ("org/name", "cpu", "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["{missing}", "What?"], 1, "missing.png: No such file or directory"),
        (["{text}", "What?"], 1, "text.png: The data is not an image"),
        (["{photo}", "What?", "-o", "{missing}/x.png"], 1, "x.png: No such file or directory"),
        (["{photo}", "What?", "-o", "{photo}.nonsense"], 1, "unknown file extension"),
        (["{photo}", "What?", "--method", "magic"], 1, "magic"),
        (["{photo}", "What?", "--model", "org/name"], 2, "--model is for a model that the command loads itself"),
    ],
)
def test_it_says_in_one_line_what_is_wrong(served, photo, tmp_path, run, arguments, status, words):
    (tmp_path / "text.png").write_text("no image")
    places = {"photo": photo, "missing": tmp_path / "missing.png", "text": tmp_path / "text.png"}
    done = run("prune", "--url", served, *(argument.format(**places) for argument in arguments))
    assert done[0] == status
    assert done[1] == ""
    assert done[2].startswith("covervlm prune: error: ")
    assert words in done[2]
    assert done[2].count("\n") == 1


@pytest.mark.parametrize("arguments", [["--keep", "0"], ["--keep", "few"], ["--coverage", "2"], ["--keep-ratio", "0"]])
def test_a_budget_that_is_none_is_wrong_usage(photo, run, arguments):
    status, _, err = run("prune", photo, "What?", *arguments)
    assert status == 2
    assert re.search(rf"argument {arguments[0]}\S*: invalid", err)


def test_it_says_in_one_line_what_the_engine_refuses(scripted, photo, run):
    scripted.script = lambda request: [EngineError("The engine is out of memory.")]
    assert run("prune", photo, "What?") == (1, "", "covervlm prune: error: The engine is out of memory.\n")


def test_it_says_in_one_line_why_the_model_does_not_load(scripted, photo, run):
    async def start():
        raise RuntimeError("no memory\nfor this")

    scripted.start = start
    expected = "covervlm prune: error: cannot load the model 'demo': no memory\n"
    assert run("prune", photo, "What?") == (1, "", expected)


def test_a_proxy_does_not_stand_between_a_command_and_its_own_server(scripted, photo, run, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert run("prune", photo, "What?")[0] == 0


def test_a_server_of_its_own_answers_nobody_else(scripted, photo, run, monkeypatch):
    import httpx

    from covervlm.clients import Client

    refused = []

    def prune(self, image, question, **options):
        answer = httpx.get(f"{self._connection.base_url}/v1/models")
        refused.append((answer.status_code, self._connection.base_url))
        return original(self, image, question, **options)

    original = Client.prune
    monkeypatch.setattr(Client, "prune", prune)
    assert run("prune", photo, "What?")[0] == 0
    assert refused[0][0] == 401
    assert refused[0][1].startswith("http://127.0.0.1:")
