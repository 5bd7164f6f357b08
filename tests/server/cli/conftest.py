"""Commands run in this process, over a scripted engine or against a live scripted server."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from covervlm.server import cli, create_app
from covervlm.server.cli import own_server
from covervlm.server.settings import Settings
from tests.server.api.clip_app import scenes
from tests.server.api.live import live_server
from tests.server.api.scripted import ScriptedEngine


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COVERVLM_BASE_URL", "COVERVLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """A command silences the log of its process, which here runs other tests too."""
    log = logging.getLogger("covervlm")
    before = log.level
    yield
    log.setLevel(before)


@pytest.fixture(scope="session", autouse=True)
def no_bars() -> None:
    """The served models are loaded in this process, too late for `capsys` not to see it."""
    disable_progress_bar()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """The engine that every command builds; `settings` holds what it was built from."""
    engine = ScriptedEngine()

    def build(settings: Settings) -> ScriptedEngine:
        engine.settings = settings
        return engine

    monkeypatch.setattr(own_server, "build_engine", build)
    return engine


@pytest.fixture(scope="session")
def served_engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture(scope="session")
def served(served_engine: ScriptedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A live server with the demo CLIP over a scripted engine that is called "scripted"."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), threads=1, served_model_name="scripted")
    with live_server(create_app(settings, served_engine)) as url:
        yield url


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (96, 96), (200, 100, 60)).save(path)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of one object each, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, scene in enumerate(scenes(12)):
        scene.image.save(folder / f"{number:02}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def broken(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures among a truncated one and one that is none."""
    broken = tmp_path_factory.mktemp("broken")
    for picture in sorted(folder.glob("*.png")):
        (broken / picture.name).write_bytes(picture.read_bytes())
    (broken / "03b.png").write_bytes((folder / "03.png").read_bytes()[:2000])
    (broken / "zz.jpg").write_bytes(b"no picture")
    return broken


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run(*arguments): exit status, stdout and stderr of one command."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def report(run: Callable[..., tuple[int, str, str]]) -> Callable[..., object]:
    """report(*arguments): the JSON document that a command prints."""

    def report(*arguments: object) -> object:
        status, out, err = run(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return report
