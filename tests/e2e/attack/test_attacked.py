"""A server of another checkout is started with what it knows, and asked for what it has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.attack import attacked
from tests.e2e.attack.children import ROOT


def serve_of_long_ago(words: list[str]) -> int:
    assert words == ["serve", "--help"]
    print("usage: serve [--port PORT] [--key-sessions N]\n  --port PORT   where it listens, see --host-of-old")
    raise SystemExit(0)


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    (folder / "server").mkdir(parents=True)
    (folder / "server" / "__init__.py").write_text("PLACE = 'the other checkout'\n")
    monkeypatch.setattr(attacked, "CHECKOUT", folder)
    return folder


def test_the_process_imports_the_package_of_the_other_checkout(checkout: Path, tmp_path: Path) -> None:
    program = "import covervlm.server; print(covervlm.server.PLACE)"
    for _ in range(2):  # a folder for all servers of a run
        environment = attacked.environment(tmp_path)
        told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert told.stdout == "the other checkout\n", told.stderr


def test_without_another_checkout_the_environment_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(attacked, "CHECKOUT", None)
    assert attacked.environment(tmp_path) == dict(os.environ)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("checkout")
def test_options_that_the_server_does_not_know_are_left_out_and_renamed_ones_renamed() -> None:
    options = ["--port", "0", "--prefix-cache-bytes", "32MiB", "--key-streams", "2"]
    assert attacked.known(options, serve_of_long_ago) == ["--port", "0", "--key-sessions", "2"]


def test_all_options_are_those_of_our_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacked, "CHECKOUT", None)
    assert attacked.known(["--unknown", "1"], serve_of_long_ago) == ["--unknown", "1"]


def test_routes_go_by_the_names_that_the_server_has() -> None:
    earlier = {"/v1/zero_shot/sessions", "/v1/zero_shot/sessions/{session}", "/v1/embeddings"}
    assert attacked.path("/v1/streams", earlier) == "/v1/zero_shot/sessions"
    assert attacked.path("/v1/streams/a/observe", earlier) == "/v1/zero_shot/sessions/a/observe"
    assert attacked.path("/v1/streamsabc", earlier) == "/v1/streamsabc"
    assert attacked.path("/v1/classify", earlier) == "/v1/classify"
    assert attacked.path("/v1/streams", {"/v1/streams"}) == "/v1/streams"


def test_documents_tell_renamed_routes_by_todays_names_too() -> None:
    document = {"paths": {"/v1/zero_shot/sessions/{session}": {"get": 1}, "/v1/embeddings": {"post": 2}}}
    paths = attacked.as_today(document)["paths"]
    assert paths["/v1/streams/{stream}"] == {"get": 1}
    assert set(paths) == {"/v1/zero_shot/sessions/{session}", "/v1/embeddings", "/v1/streams/{stream}"}


def test_a_checkout_of_today_is_linked_as_its_installation_maps_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(attacked, "CHECKOUT", ROOT)
    environment = attacked.environment(tmp_path)
    program = "import covervlm, covervlm.server, covervlm.kernels; print(covervlm.__file__)"
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert Path(told.stdout.strip()).resolve() == ROOT / "library" / "__init__.py", told.stderr
