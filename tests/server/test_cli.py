"""The `covervlm` command with a scripted engine; tests/e2e runs it with the demo model."""

import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

from covervlm.server import cli
from covervlm.server.engines import registry
from covervlm.server.engines.base import EngineError, PruningPolicy
from covervlm.server.overlay import draw_overlay
from tests.server.api.scripted import ScriptedEngine


@pytest.fixture
def scripted(monkeypatch):
    """The engine that every command builds; `settings` holds what it was built from."""
    engine = ScriptedEngine()

    def build(settings):
        engine.settings = settings
        return engine

    monkeypatch.setattr(registry, "build_engine", build)
    return engine


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (96, 96), (200, 100, 60)).save(path)
    return path


def test_version(capsys):
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"covervlm {version('covervlm')}\n"


def test_prune_draws_what_the_engine_keeps(scripted, photo, tmp_path, capsys):
    output = tmp_path / "overlay.png"
    assert cli.main(["prune", str(photo), "What color?", "--keep", "30", "-o", str(output)]) == 0
    assert capsys.readouterr().out == "mmtok keeps 30 of 576 vision tokens, coverage 0.500, 1.2 ms\n"
    expected = draw_overlay(Image.open(photo), (24, 24), range(30))
    assert (np.asarray(Image.open(output)) == np.asarray(expected)).all()
    request = scripted.requests[0]
    assert request.messages[0].text == "What color?"
    assert request.pruning == PruningPolicy(keep_tokens=30, return_indices=True)
    assert not scripted.started


def test_prune_prints_the_report_as_json(scripted, photo, capsys):
    assert cli.main(["prune", str(photo), "What?", "--keep", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "prompt_tokens": 12,
        "total": 576,
        "kept": 2,
        "method": "mmtok",
        "coverage": 0.5,
        "milliseconds": 1.25,
        "indices": [0, 1],
        "grid": [24, 24],
        "box": [0.0, 0.0, 96.0, 96.0],
    }


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [
        ([], PruningPolicy(keep_tokens=64, return_indices=True)),
        (["--keep-ratio", "0.25", "--method", "random"], PruningPolicy("random", keep_ratio=0.25, return_indices=True)),
        (["--coverage", "0.9"], PruningPolicy(coverage=0.9, return_indices=True)),
    ],
)
def test_prune_takes_every_kind_of_budget(scripted, photo, arguments, policy):
    assert cli.main(["prune", str(photo), "What?", *arguments]) == 0
    assert scripted.requests[0].pruning == policy


def test_prune_loads_the_model_that_is_named(scripted, photo):
    assert (
        cli.main(["prune", str(photo), "What?", "--model", "org/name", "--device", "cpu", "--dtype", "bfloat16"]) == 0
    )
    assert (scripted.settings.model, scripted.settings.device, scripted.settings.dtype) == (
        "org/name",
        "cpu",
        "bfloat16",
    )


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["{missing}", "What?"], 1, "missing.png: No such file or directory"),
        (["{text}", "What?"], 1, "text.png: The data is not an image"),
        (["{photo}", "What?", "--keep", "0"], 2, "keep_tokens: should be a whole number of at least 1"),
        (["{photo}", "What?", "--coverage", "2"], 2, "coverage: "),
        (["{photo}", "What?", "-o", "{missing}/x.png"], 1, "x.png: No such file or directory"),
        (["{photo}", "What?", "-o", "{photo}.nonsense"], 1, "unknown file extension"),
    ],
)
def test_prune_says_in_one_line_what_is_wrong(scripted, photo, tmp_path, capsys, arguments, status, words):
    (tmp_path / "text.png").write_text("no image")
    places = {"photo": photo, "missing": tmp_path / "missing.png", "text": tmp_path / "text.png"}
    assert cli.main(["prune", *(argument.format(**places) for argument in arguments)]) == status
    error = capsys.readouterr().err
    assert error.startswith("covervlm prune: error: ")
    assert words in error
    assert error.count("\n") == 1


def test_prune_says_in_one_line_what_the_engine_refuses(scripted, photo, capsys):
    scripted.script = lambda request: [EngineError("There is no pruning method 'magic'.")]
    assert cli.main(["prune", str(photo), "What?", "--method", "magic"]) == 1
    assert capsys.readouterr().err == "covervlm prune: error: There is no pruning method 'magic'.\n"


def test_prune_says_in_one_line_why_the_model_does_not_load(scripted, photo, capsys):
    async def start():
        raise RuntimeError("no memory\nfor this")

    scripted.start = start
    assert cli.main(["prune", str(photo), "What?"]) == 1
    assert capsys.readouterr().err == "covervlm prune: error: cannot load the model 'demo': no memory\n"


@pytest.mark.parametrize(
    "code",
    [
        "import covervlm.server",
        "import covervlm.server.app",
        "from covervlm.server.cli import main; main(['version'])",
        "from covervlm.server.cli import main\ntry: main(['serve', '--help'])\nexcept SystemExit: pass",
        "from covervlm.server.cli import main; assert main(['serve', '--port', '99999']) == 2",
    ],
)
def test_torch_is_not_loaded_before_it_is_needed(code):
    check = f"import sys\n{code}\nassert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, timeout=60)
