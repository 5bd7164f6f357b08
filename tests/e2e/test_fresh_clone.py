"""The README's two commands on a fresh clone, in an environment that has Python, make and git and nothing else."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from covervlm.server.demo import example_scenes

ROOT = Path(__file__).parents[2]
SECONDS = 3000

pytestmark = [pytest.mark.long, pytest.mark.timeout(2 * SECONDS)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh") / "covervlm"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, folder], check=True, timeout=SECONDS)
    return folder


@pytest.fixture(scope="module")
def environment(clone):
    """No variable of ours and no program of this environment; pip's own settings stay."""
    ours = str(Path(sys.executable).parent)
    path = ":".join(place for place in os.environ["PATH"].split(":") if place != ours)
    dropped = ("COVERVLM_", "PYTHON", "PYTEST_", "VIRTUAL_ENV", "MAKE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "PATH": path, "HOME": str(clone.parent)}


def test_make_serve_answers_the_request_that_it_prints(clone, environment):
    server = subprocess.Popen(
        ["make", "serve", "PORT=0"],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        banner = ""
        for line in server.stdout:
            banner += line
            if "curl" in line:
                break
        request = banner[banner.index("{ printf") :]
        done = subprocess.run(["sh", "-c", request], capture_output=True, text=True, check=True, timeout=120)
        assert json.loads(done.stdout)["choices"][0]["message"]["content"].strip() == example_scenes()[0].answer
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(120)


def test_make_test_runs_the_tests(clone, environment):
    # One file of them: all the others run where this one does.
    chosen = {**environment, "PYTEST_ADDOPTS": "tests/clients/test_images.py"}
    done = subprocess.run(
        ["make", "test"], cwd=clone, env=chosen, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed in " in done.stdout
