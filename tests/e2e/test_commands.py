"""The commands as a person runs them, with the demo model: from a shell, and at a terminal."""

import contextlib
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from covervlm.server.demo import example_scenes, model_path

COMMAND = [str(Path(sys.executable).with_name("covervlm"))]
SECONDS = 120


class Served(NamedTuple):
    """A server started from the command line, its banner, and its log as it grows."""

    process: subprocess.Popen
    banner: str
    log: list[str]
    reader: threading.Thread


@pytest.fixture(scope="module", params=[(), ("--api-key", "sesame")], ids=["open", "with a key"])
def served(request):
    command = [*COMMAND, "serve", "--port", "0", "--threads", "1", *request.param]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr))
    reader.start()
    overdue = threading.Timer(SECONDS, process.kill)
    overdue.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "curl" in line:
            break
    yield Served(process, "".join(lines), log, reader)
    overdue.cancel()
    process.kill()
    process.wait(SECONDS)
    reader.join(SECONDS)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the printed request needs curl")
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_printed_request_works_by_copy_and_paste(served, shell):
    request = served.banner[served.banner.index("{ printf") :]
    keyed = {**os.environ, "COVERVLM_API_KEY": "sesame"}
    done = subprocess.run(
        [shell, "-c", request], capture_output=True, text=True, check=True, timeout=SECONDS, env=keyed
    )
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"].strip() == example_scenes()[0].answer
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 64


def test_the_banner_names_the_page_and_sigterm_ends_it_in_order(served):
    page = served.banner.partition("in a browser: ")[2].split()[0]
    url = next(word for word in served.banner.split() if word.startswith("http://"))
    with urllib.request.urlopen(page) as response:
        assert "<html" in response.read().decode()
    with urllib.request.urlopen(f"{url}/ready") as response:
        assert json.load(response) == {"status": "ready"}
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(SECONDS) == 0
    served.reader.join(SECONDS)
    assert "Application shutdown complete" in "".join(served.log)


def test_with_json_logs_every_line_of_a_servers_life_is_an_object():
    command = [*COMMAND, "serve", "--port", "0", "--threads", "1", "--log-format", "json", "--log-level", "debug"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    overdue = threading.Timer(SECONDS, process.kill)
    overdue.start()
    try:
        lines = []
        for line in process.stderr:
            lines.append(json.loads(line))
            if "covervlm serves demo on " in lines[-1]["message"]:
                break
        url = lines[-1]["message"].split()[-1]
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/models", headers={"X-Request-Id": "r7"})).close()
        process.send_signal(signal.SIGTERM)
        lines += [json.loads(line) for line in process.stderr]
        assert process.wait(SECONDS) == 0
        assert process.stdout.read() == ""
    finally:
        overdue.cancel()
        process.kill()
    (request,) = [line for line in lines if line["logger"] == "covervlm.request"]
    assert (request["request_id"], request["route"], request["status"]) == ("r7", "/v1/models", 200)
    assert not [line for line in lines if line["logger"] == "uvicorn.access"]
    assert lines[-1]["logger"] == "uvicorn.error"


def run(*arguments, **environment):
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **environment}
    )


def test_a_port_in_use_is_one_line_and_loads_no_model():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", str(port), "--model", "/no/such/model")
    assert done.returncode == 1
    assert done.stderr == f"covervlm serve: error: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


@pytest.mark.parametrize("model", ["/no/such/model", "no-such/model"])
def test_a_model_that_is_nowhere_ends_the_server_in_one_line_and_at_once(tmp_path, model):
    # Without an address for it, the hub is as good as unplugged.
    done = run("serve", model, "--port", "0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"covervlm serve: error: model: there is no such folder: {model}; ")
    assert done.stderr.count("\n") == 1


def test_a_misspelt_variable_is_remarked_on():
    done = run("serve", "/no/such/model", "--port", "0", COVERVLM_KEEPTOKENS="64")
    assert "COVERVLM_KEEPTOKENS is not an option and changes nothing; is it COVERVLM_KEEP_TOKENS?" in done.stderr


def test_a_model_that_cannot_be_loaded_ends_the_server_in_one_line():
    done = run("serve", "--port", "0", "--device", "abacus")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("covervlm serve: error: cannot load the model ")
    assert "Traceback" not in done.stderr


def test_prune_draws_an_overlay_and_reports(tmp_path):
    example, output = example_scenes()[0], tmp_path / "overlay.png"
    arguments = [str(example.path), example.question, "--keep", "32", "-o", str(output), "--json"]
    done = run("prune", *arguments, COVERVLM_MODEL=str(model_path()), COVERVLM_THREADS="1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["kept"], report["total"], report["grid"]) == (32, 576, [24, 24])
    assert len(set(report["indices"])) == 32
    original, overlay = Image.open(example.path).convert("RGB"), Image.open(output)
    assert overlay.size == original.size
    for index in range(576):
        centre = (index % 24 * 14 + 7, index // 24 * 14 + 7)
        assert (overlay.getpixel(centre) == original.getpixel(centre)) == (index in report["indices"])


class Terminal:
    """A command whose stdin, stdout and stderr are a terminal, and what has shown on it so far."""

    def __init__(self, *arguments):
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 120))
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self._overdue = threading.Timer(SECONDS, self.process.kill)
        self._overdue.start()
        self.shown = ""

    def until(self, words):
        """What shows up to and with these words, from where the last call left off."""
        while words not in self.shown:
            try:
                self.shown += os.read(self._master, 65536).decode()
            except OSError:  # the command has ended
                break
        before, found, self.shown = self.shown.partition(words)
        assert found, f"{words!r} never showed, only: {before}"
        return before + found

    def type(self, text):
        os.write(self._master, text.encode())

    def close(self):
        self._overdue.cancel()
        self.process.kill()
        self.process.wait(SECONDS)
        os.close(self._master)


@pytest.fixture
def terminal():
    opened = []

    def open(*arguments):
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield open
    for one in opened:
        one.close()


def test_a_conversation_at_a_terminal(terminal, url):
    example = example_scenes()[0]
    chat = terminal("chat", "--url", url, str(example.path), "--keep", "64")
    assert "/keep N" in chat.until("> ")
    chat.type(f"{example.question}\n")
    assert example.answer in chat.until("64 of 576 vision tokens")
    chat.until("> ")
    chat.type("/keep all\n")
    chat.until("> ")
    chat.type(f"{example.question}\n")
    assert example.answer in chat.until("576 of 576 vision tokens")
    chat.until("> ")
    chat.type("/quit\n")
    assert chat.process.wait(SECONDS) == 0


def test_ctrl_c_at_the_prompt_ends_the_command_with_130(terminal, url):
    chat = terminal("chat", "--url", url, str(example_scenes()[0].path))
    chat.until("> ")
    for _ in range(SECONDS // 10):
        os.kill(chat.process.pid, signal.SIGINT)
        # Between the prompt and the wait for input, Python notices a signal only with the next one.
        with contextlib.suppress(subprocess.TimeoutExpired):
            chat.process.wait(10)
            break
    assert chat.process.returncode == 130
    assert "Traceback" not in chat.shown


def test_progress_shows_at_a_terminal_and_is_gone_in_the_end(terminal, url):
    folder = str(example_scenes()[0].path.parent)
    classify = terminal("classify", "--url", url, folder, "--classes", "star,circle")
    assert "0 of 5 pictures   0% |" in classify.until("color.png")
    assert "pictures" not in classify.until("where.png").rpartition("\r")[2]
    assert classify.process.wait(SECONDS) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", "{picture}", "{question}", "--keep", "64"],
        ["classify", "{picture}", "--classes", "star,triangle"],
        ["cluster", "{folder}", "--aspect", "color", "--words", "red,blue,purple", "--clusters", "2"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_load_the_demo_where_no_server_is_named(arguments):
    example = example_scenes()[0]
    places = {"picture": example.path, "question": example.question, "folder": example.path.parent}
    done = run(*(argument.format(**places) for argument in arguments), "--json", COVERVLM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    match arguments[0]:
        case "chat":
            assert (report["text"], report["images"][0]["kept"]) == (example.answer, 64)
        case "classify":
            assert report["images"][0]["label"] in ("star", "triangle")
        case "cluster":
            assert sorted(image for cluster in report["clusters"] for image in cluster["images"]) == sorted(
                str(scene.path) for scene in example_scenes()
            )
