"""The wheel that `make dist` builds, in an environment outside the checkout: every command works from there."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from covervlm.server.cli.main import COMMANDS
from covervlm.server.demo import example_scenes

ROOT = Path(__file__).parents[2]
SECONDS = 600
SCENE = example_scenes()[0]

pytestmark = [pytest.mark.long, pytest.mark.timeout(2 * SECONDS)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of what `make dist` builds."""
    folder = tmp_path_factory.mktemp("built") / "dist"
    subprocess.run(["make", "-C", ROOT, "dist", f"DIST={folder}"], check=True, timeout=SECONDS, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def place(built, tmp_path_factory):
    """An environment with the wheel, in which the packages that it needs are those of this environment."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=SECONDS)
    [packages] = place.glob("lib/python3*/site-packages")
    # Its own .pth files are not read there: an editable install of the checkout is none here.
    needed = [entry for entry in sys.path if entry.endswith("site-packages")]
    (packages / "needed.pth").write_text("\n".join(needed), encoding="utf-8")
    [wheel] = built.glob("*.whl")
    pip = [place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--force-reinstall"]
    subprocess.run([*pip, wheel], check=True, timeout=SECONDS)
    return place


@pytest.fixture
def run(place, tmp_path):
    """run(program, *arguments): what a program of the environment prints, in a folder with example pictures."""
    pictures = tmp_path / "pictures"
    for scene in example_scenes():
        label = pictures / ("many" if scene.path.stem in ("count", "where") else "few")
        label.mkdir(parents=True, exist_ok=True)
        shutil.copy(scene.path, label)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COVERVLM_", "PYTHON"))}

    def run(program, *arguments):
        done = subprocess.run(
            [place / "bin" / program, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            cwd=tmp_path,
            env={**kept, "COVERVLM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_wheel_is_all_of_the_package_and_nothing_else(built):
    [wheel] = built.glob("*.whl")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {"library": "covervlm"} | {
        name: f"covervlm/{name}" for name in ("clients", "kernels", "pruners", "server")
    }
    expected = {
        path.replace(folder, folders[folder], 1)
        for path in tracked.split("\0")
        if (folder := path.partition("/")[0]) in folders
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert {"covervlm/server/demo/llava/model.safetensors", "covervlm/py.typed"} <= packed


def test_the_sdist_holds_what_the_wheel_is_made_from(built):
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "library/__init__.py", "server/demo/clip/config.json"} <= names


def test_what_is_imported_is_what_was_installed(run, place):
    code = "import covervlm, covervlm.server.demo as demo; print(covervlm.__file__); print(demo.__file__)"
    for path in run("python", "-c", code).split():
        assert Path(path).is_relative_to(place)


def test_no_name_of_the_packages_folders_can_be_imported_bare(run):
    code = "from importlib.util import find_spec; print(*map(find_spec, ('library', 'kernels', 'server', 'pruners')))"
    assert run("python", "-c", code).split() == ["None"] * 4


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command):
    assert f"usage: covervlm {command}" in run("covervlm", command, "--help")


def test_the_package_is_a_program(run):
    assert run("python", "-m", "covervlm", "version") == run("covervlm", "version")
    assert re.fullmatch(r"covervlm \d+\.\d+\.\d+\n", run("covervlm", "version"))


def test_a_script_asks_the_demo_model(run):
    code = f"""
import covervlm
with covervlm.load("demo", threads=1) as model:
    print(model.ask({str(SCENE.path)!r}, {SCENE.question!r}, keep_tokens=64).text)
"""
    assert run("python", "-c", code).strip() == SCENE.answer


def test_chat_and_prune_ask_the_demo_model(run, tmp_path):
    asked = [SCENE.path, SCENE.question, "--keep", "64"]
    assert run("covervlm", "chat", *asked).strip() == SCENE.answer
    assert run("covervlm", "prune", *asked, "-o", "kept.png").startswith("mmtok keeps 64 of 576 vision tokens")
    assert Image.open(tmp_path / "kept.png").size == Image.open(SCENE.path).size


def test_pictures_are_labelled_grouped_learned_explained_and_made_a_table(run, tmp_path):
    labelled = json.loads(run("covervlm", "classify", "pictures", "--classes", "star,triangle", "--json"))
    assert len(labelled["images"]) == len(example_scenes())
    words = ["--aspect", "color", "--words", "red,blue,purple", "--clusters", "2"]
    assert json.loads(run("covervlm", "cluster", "pictures", *words, "--json"))["clusters"]
    run("covervlm", "train", "busy", "pictures", "--method", "linear", "--out", "busy.safetensors")
    run("covervlm", "explain", SCENE.path, "--classifier", "busy.safetensors", "-o", "why.png")
    assert Image.open(tmp_path / "why.png").size
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "purple"], "description": SCENE.question}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    run("covervlm", "extract", "pictures", "--schema", "schema.json", "--one-by-one", "--keep", "64", "-o", "t.csv")
    assert len((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(example_scenes())


def test_serve_prints_its_page_and_is_measured(run, place, tmp_path):
    command = [place / "bin" / "covervlm", "serve", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            banner = ""
            for line in server.stdout:
                banner += line
                if "curl" in line:
                    break
            url = re.search(r"serves demo on (\S+)", banner)[1]
            assert f"in a browser: {url}/\n" in banner
            page = f"import urllib.request as r; print(r.urlopen({url!r}).read().decode())"
            assert "<html" in run("python", "-c", page)
            budgets = ["--keep", "all,64", "--concurrency", "1", "--requests", "2", "--max-tokens", "2"]
            assert "64" in run("covervlm", "bench", "--url", url, *budgets)
        finally:
            server.terminate()
