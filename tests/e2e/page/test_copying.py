"""What "Copy as" gives runs as it is: the programs are run against the server that the page came from."""

import json
import os
import subprocess
import sys

import pytest

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.e2e.page.browser import FIRST, SCENE
from tests.server.api.live import live_server

pytest.importorskip("selenium")

pytestmark = pytest.mark.browser

RUN = {"curl": ["sh", "-c"], "Python": [sys.executable, "-c"], "JavaScript": ["node", "--input-type=module", "-e"]}


def copied(page, place, language):
    page.press(f'#copy-{place} button[aria-label="Copy as {language}"]')
    page.wait(lambda: page.text(f"#copy-{place} .said"))
    return page.find(f"#copy-{place} code").get_attribute("textContent")


def ran(language, program, folder, **environment):
    done = subprocess.run(
        [*RUN[language], program],
        cwd=folder,
        env={**os.environ, "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_question_about_a_sample_runs_from_a_shell_and_from_python(page, url, tmp_path):
    page.open(url).previewed(64)
    answer = json.loads(ran("curl", copied(page, "ask", "curl"), tmp_path))
    assert answer["choices"][0]["message"]["content"].strip() == SCENE.answer
    assert answer["usage"]["prompt_tokens"] == 78
    assert ran("Python", copied(page, "ask", "Python"), tmp_path).strip() == SCENE.answer


HARD = """What's "$HOME", `id` or \\n in 100 % of c:\\new?"""


def test_a_question_keeps_its_quotes_and_dollars_a_picture_its_name_and_a_key_stays_out(page, engine, tmp_path):
    picture = tmp_path / "it's a $(file).png"
    picture.write_bytes(SCENE.path.read_bytes())
    with live_server(create_app(Settings(clip_model="none", api_key="sesame"), engine)) as url:
        assert "API key" in page.open(url).error()  # by then the page has opened the key's field
        page.find("#key").send_keys("sesame")
        page.find("#file").send_keys(str(picture))
        page.wait(lambda: page.text("#chosen") and page.text(f"{FIRST} .badge"))
        page.write("#question", HARD)
        for language in ("curl", "Python"):
            program = copied(page, "ask", language)
            assert "sesame" not in program
            assert "a red circle" in ran(language, program, tmp_path, COVERVLM_API_KEY="sesame")
            assert engine.requests[-1].messages[0].text == HARD
            assert engine.requests[-1].images[0].image.size == (336, 336)


def test_labels_and_groups_run_from_a_shell_and_from_python(page, url, tmp_path):
    page.open(url, "label").press("#label-pictures .choosers > button")
    page.wait(lambda: page.text("#label-pictures .note") == "24 pictures chosen.")
    page.write("#classes", "circle, square, star, triangle")
    labels = json.loads(ran("curl", copied(page, "label", "curl"), tmp_path))["data"]
    assert len(labels) == 24
    assert ran("Python", copied(page, "label", "Python"), tmp_path).split()[::2] == [one["label"] for one in labels]
    page.press("#tab-group")
    page.write("#aspect", "color")
    page.write("#words", "red, green, blue, yellow")
    last = ran("curl", copied(page, "group", "curl"), tmp_path).strip().split("\n\n")[-2]
    sizes = {one["name"]: one["size"] for one in json.loads(last.removeprefix("data: "))["result"]["clusters"]}
    assert sizes == {"blue": 6, "green": 8, "red": 4, "yellow": 6}
    shown = ran("Python", copied(page, "group", "Python"), tmp_path).split()
    assert dict(zip(shown[::2], map(int, shown[1::2]), strict=True)) == sizes
