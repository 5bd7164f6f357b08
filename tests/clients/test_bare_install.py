"""`pip install .` without extras, in an environment with nothing else: the client, and commands that have a --url."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SECONDS = 300

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The folder of an environment's programs."""
    place = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=SECONDS)
    pip = [place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, ROOT], check=True, timeout=SECONDS)
    return place / "bin"


@pytest.fixture
def run(bare, tmp_path):
    def run(program, *arguments):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERVLM_")}
        command = [bare / program, *(str(argument) for argument in arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, env=environment, check=False
        )

    return run


def test_nothing_of_the_server_is_installed(run):
    listed = run("pip", "list", "--format", "freeze").stdout.lower()
    names = {line.partition("==")[0] for line in listed.splitlines()}
    assert {"covervlm", "httpx", "httpx-sse", "pillow"} <= names
    assert not names & {"torch", "numpy", "pydantic", "fastapi", "transformers", "uvicorn", "tqdm"}


def test_the_client_asks_and_draws(run, url, scene, tmp_path):
    program = f"""
from covervlm.clients import Client
with Client({url!r}) as client:
    print(client.chat({str(scene.path)!r}, {scene.question!r}, keep_tokens=64, temperature=0).text)
    client.prune({str(scene.path)!r}, {scene.question!r}, keep_tokens=64).overlay({str(scene.path)!r}).save("o.png")
"""
    done = run("python", "-c", program)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, scene.answer, "")
    assert Image.open(tmp_path / "o.png").size == Image.open(scene.path).size


@pytest.mark.parametrize("arguments", [["chat"], ["prune"]])
def test_commands_work_with_a_server(run, url, scene, arguments):
    done = run("covervlm", *arguments, "--url", url, scene.path, scene.question, "--keep", "64")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(scene.answer if arguments == ["chat"] else "mmtok keeps 64 of 576")


def test_loading_a_model_says_what_to_install(run):
    done = run("python", "-c", "import covervlm; covervlm.load('demo')")
    assert done.returncode == 1
    assert "covervlm.load needs " in done.stderr.splitlines()[-1]
    assert "pip install 'covervlm[server]'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["serve"], ["chat", "{picture}", "What?"]])
def test_what_needs_the_server_says_how_to_get_it(run, scene, arguments):
    done = run("covervlm", *(argument.format(picture=scene.path) for argument in arguments))
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'covervlm[server]'" in done.stderr
    assert done.stderr.count("\n") == 1
