"""The page under axe-core and Lighthouse, and its JavaScript programs in Node: tools that come from npm."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.page.browser import SCENE
from tests.e2e.page.test_copying import copied, ran

pytest.importorskip("selenium")
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.accessibility

TOOLS = Path(os.environ.get("COVERVLM_PAGE_TOOLS", ".page-tools"))
AXE = TOOLS / "node_modules/axe-core/axe.min.js"
LIGHTHOUSE = TOOLS / "node_modules/.bin/lighthouse"


@pytest.fixture
def axe(page):
    """Runs axe-core, all of its rules and best practices, on what is in sight; gives what it finds."""
    if not AXE.exists():
        pytest.fail("axe-core is missing; `make test-accessibility` installs it")

    def run():
        # Not an element: the page's policy lets no foreign script in.
        page.driver.execute_script(AXE.read_text())
        found = page.driver.execute_async_script("const done = arguments[0]; axe.run().then((r) => done(r.violations))")
        return [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]

    return run


def fill(page, tab):
    """Brings a tab to where most of it is in sight."""
    if tab == "ask":
        page.choose("#third", "uniform")
        page.ask()
        page.summary()
        page.find("#budget").send_keys(Keys.HOME)
        copied(page, "ask", "curl")
    if tab in ("label", "group"):
        page.press(f"#{tab}-try")
        page.wait(lambda: page.text(f"#{tab}-said").startswith(("24 pictures labelled", "4 groups")))
    if tab == "label":
        page.find("#label-gallery .card").click()
        page.wait(lambda: page.find("#correction").is_displayed())
    if tab == "traffic":
        page.wait(lambda: page.all(".tile"))


@pytest.mark.parametrize("tab", ["ask", "label", "group", "traffic"])
def test_axe_finds_nothing(page, url, axe, tab):
    page.look_at(1280, 1000)
    page.open(url, tab)
    assert axe() == []
    fill(page, tab)
    for width, dark in ((1280, False), (1280, True), (390, False)):
        page.look_at(width, 1000, dark=dark)
        assert axe() == [], (width, dark)
    if tab == "label":
        page.press("#correction-close")
        assert axe() == []


@pytest.mark.parametrize("tab", ["", "#label", "#group", "#traffic"])
def test_lighthouse_scores_are_95_or_more(url, tmp_path, tab):
    if not LIGHTHOUSE.exists():
        pytest.fail("Lighthouse is missing; `make test-accessibility` installs it")
    out = tmp_path / "report.json"
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage"
    command = [str(LIGHTHOUSE.resolve()), f"{url}/{tab}", "--quiet", "--output=json", f"--output-path={out}"]
    command += ["--only-categories=accessibility,best-practices", f"--chrome-flags={flags}"]
    chromium = shutil.which("chromium") or "chromium"
    subprocess.run(command, check=True, timeout=240, env={**os.environ, "CHROME_PATH": chromium}, cwd=tmp_path)
    report = json.loads(out.read_text())
    scores = {name: round(100 * one["score"]) for name, one in report["categories"].items()}
    print(f"Lighthouse, {tab or '#ask'}: {scores}")
    bad = [one["id"] for one in report["audits"].values() if one["score"] is not None and one["score"] < 1]
    assert min(scores.values()) >= 95, bad


def test_a_question_and_labels_run_in_node(page, url, tmp_path):
    page.open(url).previewed(64)
    answer = json.loads(ran("JavaScript", copied(page, "ask", "JavaScript"), tmp_path))
    assert answer["choices"][0]["message"]["content"].strip() == SCENE.answer
    page.press("#tab-group")
    page.press("#group-pictures .choosers > button")
    page.wait(lambda: page.text("#group-pictures .note") == "24 pictures chosen.")
    page.write("#aspect", "color")
    page.write("#words", "red, green, blue, yellow")
    result = json.loads(ran("JavaScript", copied(page, "group", "JavaScript"), tmp_path))
    assert {one["name"]: one["size"] for one in result["clusters"]} == {"blue": 6, "green": 8, "red": 4, "yellow": 6}
