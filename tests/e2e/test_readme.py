"""Everything that the README and the guides tell a reader to run, run against a live demo server."""

import re

import pytest
from PIL import Image, ImageChops

from tests.e2e.documented import Block, blocks, sections
from tests.e2e.run_documented import ROOT, Workspace, config_file

GUIDES = ("client", "python", "command-line", "training", "search", "explain", "clip", "features", "zero_shot")
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in GUIDES)]
README = DOCUMENTS[0].read_text(encoding="utf-8")


def of(language: str) -> list[object]:
    found = [block for path in DOCUMENTS if path.exists() for block in blocks(path) if block.language == language]
    return [pytest.param(block, id=block.place) for block in found]


def sections_of(language: str) -> list[object]:
    found = [block for path in DOCUMENTS if path.exists() for block in sections(path, language)]
    return [pytest.param(block, id=block.place) for block in found]


@pytest.fixture
def workspace(tmp_path, url):
    return Workspace(tmp_path, url)


def check_answers(code: str, output: str) -> None:
    """Who asks about the example scene's triangle must be told its color, from 64 tokens."""
    asked = len(re.findall(r"color does the triangle have", code))
    assert output.count("purple") >= asked, output
    # 576 vision tokens alone would be more.
    for prompt_tokens in re.findall(r'(?:"prompt_tokens":|purple )(\d+)', output):
        assert 64 < int(prompt_tokens) < 100


@pytest.mark.parametrize("block", sections_of("python"))
def test_python_runs(workspace, block: Block):
    check_answers(block.text, workspace.python(block.text))


@pytest.mark.parametrize("block", of("sh"))
def test_shell_runs(workspace, block: Block):
    check_answers(block.text, workspace.shell(block.text))


@pytest.mark.parametrize("block", of("toml"))
def test_config_files_are_taken(block: Block):
    config_file(block.text)


@pytest.mark.parametrize("block", of("command"))
def test_commands_run(workspace, block: Block):
    workspace.command(block.text)


def test_the_readme_has_what_these_tests_look_for():
    found = blocks(DOCUMENTS[0])
    assert {block.language for block in found} >= {"sh", "python", "command"}
    assert any(block.text.startswith("make serve") for block in found)
    assert any(block.text.startswith("make test") for block in found)


def test_programs_are_on_the_path_before_the_readme_calls_them_by_name(workspace):
    """What is run above finds them there only because of that."""
    found = [block for block in blocks(DOCUMENTS[0]) if block.language in ("sh", "command")]
    [activation] = [block.text for block in found if block.text.startswith(". ")]
    after = README.partition(f"    {activation}\n")[2]
    for block in found:
        if re.search(r"^(covervlm|python|pip) ", block.text):
            assert block.text.splitlines()[0] in after, block.text
    programs = workspace.activated("command -v covervlm python").splitlines()
    assert [program.partition(".venv/")[2] for program in programs] == ["bin/covervlm", "bin/python"]


def test_no_example_leaves_its_answer_to_chance(workspace):
    """The demo model is right where it is sure, and a sampled answer is not what the guide says beside it."""
    for path in DOCUMENTS:
        for block in blocks(path):
            asks = re.findall(
                r"client\.(?:chat|stream|chat_messages)\(.*|/v1/chat/completions|completions\.create", block.text
            )
            greedy = len(re.findall(r"temperature\W{1,3}0\b", block.text))
            assert greedy >= len([one for one in asks if "method=" not in one]), block.place


def test_commands_are_found_in_fences_lines_and_sentences(tmp_path):
    path = tmp_path / "guide.md"
    path.write_text(
        "# One\n    make serve   # starts\n    kernels/   no command\n"
        "Try `covervlm version`, not `pip install`.\n"
        "```sh\ncovervlm serve \\\n    --keep-tokens 64\n# a remark\npip install covervlm[server]\n```\n"
        "```sh\nexport A=1\ncovervlm version\n```\n"
        "```python\na = 1\n```\n## Two\n```python\nb = 2\n```\n```python\nprint(b)\n```\n```\nanything\n```\n"
    )
    commands = [block.text for block in blocks(path) if block.language == "command"]
    assert [" ".join(command.split()) for command in commands] == [
        "make serve",
        "covervlm version",
        "covervlm serve --keep-tokens 64",
        "pip install covervlm[server]",
    ]
    assert [block.text for block in blocks(path) if block.language == "sh"] == ["export A=1\ncovervlm version\n"]
    assert [block.text for block in sections(path, "python")] == ["a = 1\n", "b = 2\n\nprint(b)\n"]


@pytest.mark.parametrize(
    "command",
    [
        "covervlm serve --model x --kept-tokens 64",
        "covervlm dance",
        "make nonsense",
        "pip install covervlm[extras]",
        "pip install torch",
        "python benchmarks/latency.py --no-such-option",
        "docker build -f docker/Dockerfile.none .",
        "docker ps",
        "kubectl apply -f docker/none.yaml",
        "curl -sf http://127.0.0.1:8000/no/such/page",
    ],
)
def test_a_command_that_would_fail_fails_here(workspace, command):
    with pytest.raises((AssertionError, SystemExit)):
        workspace.command(command)


def test_the_picture_is_what_the_command_beside_it_draws(workspace):
    [command] = [block.text for block in blocks(DOCUMENTS[0]) if block.text.endswith("-o docs/overlay.png")]
    workspace.command(command)
    drawn = Image.open(workspace.folder / "docs" / "overlay.png").convert("RGB")
    shown = Image.open(ROOT / "docs" / "overlay.png").convert("RGB")
    assert ImageChops.difference(drawn, shown).getbbox() is None


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.exists()], ids=lambda path: path.name)
def test_every_file_that_is_linked_to_exists(path):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link
