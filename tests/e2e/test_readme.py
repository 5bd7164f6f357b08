"""Every example of the README, run as it stands against a live demo server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```(sh|python)\n(.*?)```", README, flags=re.DOTALL)


def run(command: list[str], **options) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT, **options).stdout


@pytest.mark.parametrize(("language", "code"), EXAMPLES, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(EXAMPLES)])
def test_the_example_gets_the_right_answer_from_64_tokens(language, code, url):
    code = code.replace("http://127.0.0.1:8000", url)
    output = run(["bash", "-c", code] if language == "sh" else [sys.executable, "-c", code])
    assert "purple" in output
    # 576 vision tokens alone would be more.
    [prompt_tokens] = re.findall(r'(?:"prompt_tokens":|purple )(\d+)', output)
    assert 64 < int(prompt_tokens) < 100


def test_the_picture_is_what_the_command_beside_it_draws(tmp_path):
    [command] = re.findall(r"^    (covervlm prune .*) -o docs/overlay.png$", README, flags=re.MULTILINE)
    drawn = tmp_path / "overlay.png"
    run(["bash", "-c", f"{Path(sys.executable).with_name('covervlm')} {command.removeprefix('covervlm ')} -o {drawn}"])
    shown = Image.open(ROOT / "docs" / "overlay.png").convert("RGB")
    assert ImageChops.difference(Image.open(drawn).convert("RGB"), shown).getbbox() is None


def test_every_file_that_the_readme_links_to_exists():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / link).exists(), link
