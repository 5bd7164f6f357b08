"""Runs what documentation tells a reader to run: for real where that takes seconds, else as far as its options go."""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SECONDS = 240
LINKED = ("server", "benchmarks", "docker", "README.md", "pyproject.toml", "Makefile", ".venv", ".venv-zoo")
LINKED += tuple(path.name for path in ROOT.glob("constraints*.txt"))


class Workspace:
    """A folder that looks like the checkout, in which commands may write.

    url: a live server, which stands for http://127.0.0.1:8000 and answers commands that name no server.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        for name in LINKED:
            if (ROOT / name).exists():
                (folder / name).symlink_to(ROOT / name)
        (folder / "docs").mkdir()

    def shell(self, text: str) -> str:
        """A shell script's output; its failure is the test's."""
        return self._output(["bash", "-euo", "pipefail", "-c", self._here(text)])

    def activated(self, text: str) -> str:
        """The output of a script after README's own line that puts programs on the path, with nothing else on it."""
        command = ["env", "-i", "PATH=/usr/bin:/bin", "bash", "-eu", "-c", f". .venv/bin/activate\n{text}"]
        return self._output(command)

    def python(self, text: str) -> str:
        return self._output([sys.executable, "-c", self._here(text)])

    def command(self, text: str) -> str:
        """Run, or check, one command. Raises AssertionError for one that there is no way to check."""
        program, *arguments = shlex.split(self._here(text))
        match Path(program).name, arguments:
            case "covervlm", ["serve", *options] if "--help" not in options:
                return _serve_options(options)
            case "covervlm", _:
                return self._output([str(BIN / "covervlm"), *arguments])
            case "python", ["-m", "covervlm", *_]:
                return self._output([sys.executable, *arguments])
            case "python", [script, *options] if script.startswith("benchmarks/"):
                return self._options_of([sys.executable, script], options)
            case "", [script]:  # the name of "."
                return self.shell(f". {script}")
            case "make", [target, *_]:
                return self._output(["make", "-n", target, *arguments[1:]])
            case "pip", ["install", *wanted]:
                return _extras(wanted)
            case "curl", _:
                return self.shell(text)
            case ("docker", ["build" | "compose" | "run", *_]) | ("kubectl", ["apply" | "kustomize", *_]):
                return self._files_of(arguments)
            case "vllm", ["serve", *_]:
                return _tested_beside_vllm("serve")
        raise AssertionError(f"nobody knows how to check this command: {text}")

    def _here(self, text: str) -> str:
        return text.replace("http://127.0.0.1:8000", self.url).replace("http://localhost:8000", self.url)

    def _output(self, command: list[str]) -> str:
        environment = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "COVERVLM_BASE_URL": self.url,
            "OPENAI_API_KEY": "none",
        }
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, cwd=self.folder, env=environment, check=False
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _options_of(self, program: list[str], options: list[str]) -> str:
        """For what takes minutes: the program starts, and knows every option."""
        explained = self._output([*program, "--help"])
        for option in options:
            assert not option.startswith("--") or re.search(rf"{re.escape(option.partition('=')[0])}\b", explained), (
                option
            )
        return explained

    def _files_of(self, arguments: list[str]) -> str:
        """For what needs containers: the files that it names are there."""
        for option, value in pairwise(arguments):
            assert option not in ("-f", "--file", "-k") or (self.folder / value).exists(), value
        return ""


def config_file(text: str) -> None:
    """A TOML file for --config: every option in it exists and has a possible value."""
    from covervlm.server.settings import Settings

    options = {name.replace("-", "_"): value for name, value in tomllib.loads(text).items()}
    Settings(**options)


def _serve_options(options: list[str]) -> str:
    """The options of `covervlm serve`, which would not end by itself; the model may be one that only the web has."""
    from covervlm.server.cli import serve

    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return repr(serve.settings_of(parser.parse_args(options)))


def _tested_beside_vllm(subcommand: str) -> str:
    """vLLM lives in an environment of its own: one of the tests there runs this."""
    tests = (ROOT / "tests" / "vllm").glob("test_*.py")
    assert any(f'"{subcommand}"' in path.read_text(encoding="utf-8") for path in tests), f"no test of vllm {subcommand}"
    return ""


def _extras(wanted: list[str]) -> str:
    """What is installed is this package, with extras that it has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name in (word for word in wanted if not word.startswith("-")):
        package, _, extras = name.rstrip("]").partition("[")
        if package == f"dist/{project['name']}-{project['version']}-py3-none-any.whl":  # what `make dist` builds
            package = project["name"]
        assert package in (project["name"], "."), f"{name} is another project's"
        assert set(filter(None, extras.split(","))) <= set(project["optional-dependencies"]), name
    return ""
