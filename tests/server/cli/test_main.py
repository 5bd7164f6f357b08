"""What all commands share: help, versions, exit statuses, keys, and what is loaded when."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from covervlm.server import create_app
from covervlm.server.cli import prune
from covervlm.server.cli.main import COMMANDS
from covervlm.server.settings import Settings
from tests.server.api.live import live_server
from tests.server.api.scripted import ScriptedEngine


def test_version(run):
    expected = f"covervlm {version('covervlm')}\n"
    assert run("version") == (0, expected, "")
    assert run("--version") == (0, expected, "")


def test_help_lists_every_command_and_the_exit_statuses(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(f"    {name} " in out and summary in out for name, summary in COMMANDS.items())
    assert "130 interrupted" in out


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "version"])
def test_every_command_explains_itself(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert out.startswith(f"usage: covervlm {command} ")
    assert len(out.splitlines()) > 15


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["prune"], ["classify", "x.png"], ["cluster", "x"], ["bench", "x"]]
)
def test_wrong_usage_is_status_2(run, arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "usage: covervlm" in err


@pytest.mark.parametrize(
    "words",
    [
        ["chat"],
        ["bench"],
        ["prune", "x.png", "What?"],
        ["classify", "x.png", "--classes", "a,b"],
        ["explain", "x.png", "--classifier", "a"],
        ["train", "a", "x"],
        ["cluster", "x", "--aspect", "color"],
        ["stream", "x", "--classes", "a,b"],
        ["tune", "x", "-o", "x.md"],
    ],
)
def test_a_misspelt_option_is_answered_with_the_nearest_and_the_commands_own_help(run, words):
    status, out, err = run(*words, "--ulr=http://127.0.0.1:9")
    assert (status, out) == (2, "")
    assert err.endswith(
        f"\ncovervlm {words[0]}: error: unrecognized arguments: --ulr=http://127.0.0.1:9; did you mean --url? "
        f"See: covervlm {words[0]} --help\n"
    )


def test_an_option_like_no_other_and_one_word_too_many_are_told_with_where_to_look(run):
    for word in ("--qqqqqq", "many"):
        status, out, err = run("version", word)
        assert (status, out) == (2, "")
        assert err.endswith(f": error: unrecognized arguments: {word}. See: covervlm version --help\n")
    assert "did you mean --clip-model?" in run("serve", "--clip-modle", "none")[2]


def test_an_interrupt_is_status_130(run, monkeypatch, photo):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(prune, "run", interrupted)
    assert run("prune", photo, "What?") == (130, "", "")


def test_nobody_at_the_url_is_told_with_advice(run, photo):
    status, out, err = run("prune", "--url", "http://127.0.0.1:9", photo, "What?")
    assert (status, out) == (1, "")
    assert err.startswith("covervlm prune: error: http://127.0.0.1:9: ")
    assert err.endswith("Start one with: covervlm serve\n")


def test_a_url_that_is_none_is_wrong_usage(run, photo):
    status, _, err = run("prune", "--url", "localhost:8000", photo, "What?")
    assert status == 2
    assert "--url starts with http://" in err


def test_the_environment_names_the_server_and_the_key(run, photo, monkeypatch):
    with live_server(create_app(Settings(clip_model="none", api_key="sesame"), ScriptedEngine())) as url:
        monkeypatch.setenv("COVERVLM_BASE_URL", url)
        status, _, err = run("prune", photo, "What?")
        assert status == 1
        assert "--api-key" in err
        assert run("prune", photo, "What?", "--api-key", "sesame")[0] == 0
        monkeypatch.setenv("COVERVLM_API_KEY", "sesame")
        assert run("prune", photo, "What?")[0] == 0


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


def test_whoever_stops_reading_is_no_failure():
    code = "import sys\nfrom covervlm.server.cli import main\nsys.exit(main(['version']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
