"""`covervlm serve` ends in one clear line where it cannot work, and before a model is loaded wherever that is known."""

import socket
from pathlib import Path

import pytest

from covervlm.server import cli, serving
from covervlm.server.clip.service import ClipService
from tests.server.api.scripted import ScriptedEngine

CERTIFICATES = Path(__file__).parent / "certificates"
CERTIFICATE = CERTIFICATES / "images.test.pem"

pytestmark = pytest.mark.usefixtures("root_handlers")


@pytest.fixture
def engine(monkeypatch):
    """What `serve` would serve, so that a test sees whether it was started."""
    engine = ScriptedEngine()
    engine.was_started = False

    async def start():
        engine.was_started = engine.started = True

    engine.start = start
    monkeypatch.setattr(serving, "build_engine", lambda settings: engine)
    return engine


def complaint(capsys, *arguments):
    assert cli.main(["serve", "--port=0", *map(str, arguments)]) in (1, 2)
    text = capsys.readouterr().err
    assert text.startswith("covervlm serve: error: ")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--api-keys-file=/none"], "api_keys_file /none: No such file"),
        (["--api-keys-file={plain}"], "line 1 does not start with sha256:"),
        (["--ssl-certfile=/none.pem"], "ssl_certfile /none.pem: No such file"),
        (["--ssl-certfile={plain}"], "ssl_certfile {plain}: "),
        (["--ssl-certfile={certificate}", "--ssl-keyfile={plain}"], "ssl_keyfile {plain}: "),
        (["--ssl-certfile={certificate}"], "ssl_certfile {certificate}: "),
        (["--ssl-keyfile={plain}"], "ssl_keyfile needs ssl_certfile"),
        (
            ["--ssl-certfile={certificate}", "--ssl-keyfile={encrypted}", "--ssl-keyfile-password=wrong-horse"],
            "ssl_keyfile {encrypted}: ",
        ),
        (["--host=256.0.0.1"], "cannot listen on 256.0.0.1 port 0: "),
        (["--host=192.0.2.1"], "cannot listen on 192.0.2.1 port 0: "),
    ],
)
def test_what_can_be_known_without_the_model_ends_the_start_before_it(engine, tmp_path, capsys, arguments, words):
    plain = tmp_path / "plain"
    plain.write_text("a key in plain text\n")
    places = {"plain": plain, "certificate": CERTIFICATE, "encrypted": CERTIFICATES / "images.test.encrypted.key"}
    text = complaint(capsys, *(argument.format(**places) for argument in arguments))
    assert words.format(**places) in text
    assert "plain text" not in text
    assert "horse" not in text
    assert not engine.was_started


def test_a_port_in_use_ends_the_start_before_the_model(engine, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1 port {port}: Address already in use" in complaint(capsys, f"--port={port}")
    assert not engine.was_started


def test_a_data_folder_that_cannot_be_used_ends_the_start(engine, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "the data folder" in complaint(capsys, f"--data-dir={tmp_path}/file")


def test_a_model_that_cannot_be_loaded_ends_the_start_and_stops_what_has_begun(engine, capsys):
    stopped = []

    async def start():
        raise MemoryError("no room\nTraceback")

    async def stop():
        stopped.append(True)

    engine.start, engine.stop = start, stop
    assert complaint(capsys).endswith("cannot load the model 'demo': no room\n")
    assert stopped


def test_a_clip_model_that_cannot_be_loaded_ends_the_start(engine, tmp_path, monkeypatch, capsys):
    async def start(self):
        raise ValueError("it is no CLIP model")

    monkeypatch.setattr(ClipService, "start", start)
    text = complaint(capsys, "--clip-model=demo", f"--data-dir={tmp_path}")
    assert text.endswith("cannot serve the CLIP model 'demo-clip': it is no CLIP model\n")
