"""The playground page in a real headless Chromium."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from PIL import Image

from covervlm.server import create_app
from covervlm.server.core.errors import EngineError
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.demo import example_scenes
from covervlm.server.settings import Settings
from tests.server.api.live import live_server
from tests.server.api.scripted import ScriptedEngine, prompt_report, red_circle

pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from tests.e2e.playground_page import SCENE, Page, start
from tests.e2e.playground_server import Guard, Held

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def driver():
    paths = shutil.which("chromium"), shutil.which("chromedriver")
    if None in paths:
        pytest.fail("chromium and chromedriver are missing; `make test-browser` installs them on Debian")
    driver = start(*paths)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver) -> Iterator[Page]:
    yield Page(driver)
    wrong = [e for e in driver.get_log("browser") if e["level"] == "SEVERE" and e["source"] != "network"]
    driver.execute_script("sessionStorage.clear()")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    # Refused requests are the business of the tests; scripts that failed or were blocked are never right.
    assert wrong == []


@pytest.fixture
def engine(monkeypatch):
    def whole_picture(request):
        report = prompt_report(request)
        return replace(report, images=tuple(replace(image, box=None) for image in report.images))

    monkeypatch.setattr("tests.server.api.scripted.prompt_report", whole_picture)
    return ScriptedEngine()


@pytest.fixture
def scripted(engine) -> Iterator[str]:
    with live_server(create_app(Settings(clip_model="none"), engine)) as url:
        yield url


def test_an_example_is_previewed_asked_and_compared(page, url):
    page.open(url)
    assert page.find("#question").get_attribute("value") == SCENE.question
    page.previewed(64)
    page.ask()
    assert "78 prompt tokens instead of 590" in page.summary()
    for panel in ("pruned", "full"):
        assert page.text(f"#{panel} .answer") == SCENE.answer
        assert page.times(panel)["Time to first token"].endswith(" ms")
    assert page.times("pruned")["Prompt tokens"] == "78"
    assert page.times("full")["Prompt tokens"] == "590"
    assert page.text("#full .badge") == "576 of 576 tokens"


def test_figures_of_both_answers_have_bars_on_one_scale(page, scripted):
    page.open(scripted).previewed(64)
    page.ask()
    summary = page.summary()
    bars = {panel: page.driver.find_elements(By.CSS_SELECTOR, f"#{panel} progress") for panel in ("pruned", "full")}
    time, tokens = bars["pruned"]
    assert (float(tokens.get_attribute("value")), float(tokens.get_attribute("max"))) == (74, 586)
    assert tokens.get_attribute("max") == bars["full"][1].get_attribute("value")
    times = [float(bars[panel][0].get_attribute("value")) for panel in ("pruned", "full")]
    assert float(time.get_attribute("max")) == max(times)
    shown = [page.times(panel)["Time to first token"] for panel in ("pruned", "full")]
    assert summary == f"74 prompt tokens instead of 586, first token after {shown[0]} instead of {shown[1]}."


def test_a_line_is_drawn_around_kept_patches_and_not_between_them(page, scripted):
    page.open(scripted).previewed(64)
    # Two full rows and 16 patches of the third, of 28 pixels each.
    colors = page.driver.execute_script(
        """
        const context = document.querySelector("#pruned canvas").getContext("2d");
        return arguments[0].map(([x, y]) => [...context.getImageData(x, y, 1, 1).data].slice(0, 3));
        """,
        [[28, 14], [14, 28], [28 * 16, 70], [28 * 20, 56], [14, 84]],
    )
    yellow = [color == [255, 210, 0] for color in colors]
    assert yellow == [False, False, True, True, True]


def test_the_lit_patches_are_the_ones_that_the_server_keeps(page, url, client):
    picture = "data:image/png;base64," + base64.b64encode(SCENE.path.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": SCENE.question}]
    body = {"model": "demo", "messages": [{"role": "user", "content": content}], "vision_pruning": {"keep_tokens": 64}}
    expected = client.post("/prune", cast_to=dict[str, object], body=body)["images"][0]["indices"]
    page.open(url).previewed(64)
    assert page.lit() == expected


def test_moving_the_slider_and_choosing_a_method_changes_the_preview(page, scripted, engine):
    page.open(scripted).previewed(64)
    assert page.lit() == list(range(64))
    page.find("#budget").send_keys(Keys.HOME)
    page.previewed(1)
    assert page.text("#budget-text") == "1 of 576 (0 %)"
    assert page.lit() == [0]
    page.find("#budget").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.previewed(3)
    Select(page.find("#method")).select_by_value("uniform")
    page.wait(lambda: engine.requests[-1].pruning.method == "uniform")
    page.find("#budget").send_keys(Keys.END)
    page.previewed(576)
    assert page.lit() == list(range(576))


def test_the_answer_shows_while_it_is_being_made(page, scripted, engine):
    engine.script = script = Held()
    page.open(scripted).ask()
    page.wait(lambda: page.text("#pruned .answer") == "a red")
    assert not page.find("#ask").is_enabled()
    script.go_on()
    page.wait(lambda: page.text("#pruned .answer") == "a red circle")
    page.wait(lambda: page.text("#full .answer") == "a red")
    script.go_on()
    page.summary()
    assert page.find("#ask").is_enabled()
    assert [request.pruning.prunes for request in script.requests] == [True, False]


def test_stop_ends_the_generation_on_the_server_too(page, scripted, engine):
    engine.script = script = Held()
    page.open(scripted).ask()
    page.wait(lambda: page.text("#pruned .answer") == "a red")
    page.find("#stop").click()
    page.wait(lambda: script.requests[0].request_id in engine.released)
    page.wait(lambda: page.find("#ask").is_enabled())
    assert not page.find("#stop").is_displayed()
    assert not page.find("#error").is_displayed()
    assert page.text("#full .answer") == ""


def test_without_the_comparison_one_answer_is_made(page, scripted, engine):
    page.open(scripted).previewed(64)
    page.find("#compare").click()
    assert not page.find("#full").is_displayed()
    page.ask()
    page.wait(lambda: page.times("pruned"))
    page.wait(lambda: page.find("#ask").is_enabled())
    assert [request.sampling.temperature for request in engine.requests].count(0) == 1


def test_an_answer_by_a_schema_is_shown_as_indented_json(page, scripted, engine):
    def things(request):
        report = prompt_report(request) if request.sampling.grammar else None
        return [
            GenerationChunk(0, '{"color":"red",', 1, (), None, report),
            GenerationChunk(0, '"n":[1,2]}', 1, (), "stop"),
        ]

    page.open(scripted).previewed(64)
    engine.script = things
    page.find("#form details summary").click()
    page.find("#schema").send_keys('{"type": "object"}')
    page.ask()
    page.summary()
    shown = page.driver.execute_script("return document.querySelector('#pruned .answer').innerText")
    assert shown == json.dumps({"color": "red", "n": [1, 2]}, indent=2)
    assert page.text("#full .answer") == shown
    grammar = engine.requests[-1].sampling.grammar
    assert (json.loads(grammar.text), grammar.lenient) == ({"type": "object"}, False)


def test_a_schema_that_is_no_json_is_told_and_nothing_is_asked(page, scripted, engine):
    page.open(scripted).previewed(64)
    page.find("#form details summary").click()
    page.find("#schema").send_keys('{"type": ')
    page.ask()
    assert page.error().startswith("The schema is not JSON: ")
    assert all(request.sampling.grammar is None for request in engine.requests)
    assert page.find("#ask").is_enabled()


def test_a_file_of_ones_own_is_asked_about(page, scripted, engine, tmp_path):
    path = tmp_path / "own.png"
    Image.new("RGB", (40, 20), (10, 200, 30)).save(path)
    page.open(scripted).previewed(64)
    page.find("#file").send_keys(str(path))
    page.wait(lambda: page.text("#drop-text") == "own.png")
    page.find("#question").clear()
    page.find("#question").send_keys("What is this?")
    page.ask()
    page.summary()
    sent = engine.requests[-1]
    assert sent.images[0].image.size == (40, 20)
    assert sent.images[0].image.getpixel((3, 3)) == (10, 200, 30)
    assert sent.messages[0].text == "What is this?"
    canvas = page.find("#pruned canvas")
    assert (canvas.get_attribute("width"), canvas.get_attribute("height")) == ("672", "336")
    assert not any(choice.is_selected() for choice in page.driver.find_elements(By.NAME, "example"))


def test_a_picture_can_be_dropped(page, scripted, engine, tmp_path):
    page.open(scripted).previewed(64)
    buffer = io.BytesIO()
    Image.new("RGB", (30, 30), "blue").save(buffer, "PNG")
    page.driver.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        """,
        base64.b64encode(buffer.getvalue()).decode(),
    )
    page.wait(lambda: page.text("#drop-text") == "dropped.png")
    page.wait(lambda: engine.requests[-1].images[0].image.size == (30, 30))


def test_a_file_that_is_no_picture_is_refused_in_words(page, scripted, tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    page.open(scripted).find("#file").send_keys(str(path))
    assert page.error() == "This file is not a picture that the browser can show."


def test_what_the_server_refuses_is_shown_and_goes_away(page, scripted, engine):
    engine.script = lambda request: [EngineError("The engine ran out of memory.")]
    page.open(scripted)
    assert page.error() == "The engine ran out of memory."
    assert page.find("#error").get_attribute("role") == "alert"
    engine.script = red_circle
    page.ask()
    page.summary()
    assert not page.find("#error").is_displayed()


def test_a_failure_on_the_way_is_shown_beside_what_has_come(page, scripted, engine):
    engine.script = script = Held(then=EngineError("The engine stopped."))
    page.open(scripted).ask()
    page.wait(lambda: page.text("#pruned .answer") == "a red")
    script.go_on()
    assert page.error() == "The engine stopped."
    assert page.text("#pruned .answer") == "a red"
    assert page.find("#ask").is_enabled()


def test_a_server_that_is_gone_is_told(page, engine):
    with live_server(create_app(Settings(clip_model="none"), engine)) as url:
        page.open(url).previewed(64)
    page.ask()
    assert page.error() == "The server cannot be reached."


def test_a_key_is_asked_for_sent_and_kept_in_the_tab(page, engine):
    with live_server(Guard(create_app(Settings(clip_model="none"), engine), key="sesame")) as url:
        page.open(url)
        assert page.error() == "Incorrect API key provided."
        assert page.driver.switch_to.active_element == page.find("#key")
        page.find("#key").send_keys("sesame")
        page.previewed(64)
        page.ask()
        page.summary()
        page.driver.refresh()
        page.previewed(64)
        assert page.driver.execute_script("return localStorage.length") == 0


def test_the_servers_own_keys_open_the_page(page, engine):
    with live_server(create_app(Settings(clip_model="none", api_key="sesame"), engine)) as url:
        page.open(url)
        assert "API key" in page.error()
        assert page.driver.switch_to.active_element == page.find("#key")
        page.find("#key").send_keys("sesame")
        page.previewed(64)
        page.ask()
        assert page.summary()
        assert not page.find("#error").is_displayed()


def test_the_keyboard_alone_is_enough(page, scripted, engine):
    page.open(scripted).previewed(64)
    order = []
    for _ in range(9):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        active = page.driver.switch_to.active_element
        order.append(active.get_attribute("id") or active.get_attribute("name") or active.tag_name)
        if order[-1] == "example":
            active.send_keys(Keys.ARROW_RIGHT)
    assert order == ["summary", "example", "file", "question", "budget", "method", "summary", "compare", "ask"]
    page.wait(lambda: page.find("#question").get_attribute("value") == example_scenes()[1].question)
    page.find("#question").send_keys(Keys.ENTER)
    page.summary()
    assert engine.requests[-1].messages[0].text == example_scenes()[1].question


def test_every_control_has_a_name_for_screen_readers(page, scripted):
    page.open(scripted).previewed(64)
    controls = page.driver.find_elements(By.CSS_SELECTOR, "input, select, textarea, button, canvas")
    assert len(controls) >= 12
    assert [control.get_attribute("outerHTML") for control in controls if not control.accessible_name] == [
        # Not in the page while its part is closed or hidden.
        page.find(selector).get_attribute("outerHTML")
        for selector in ("#key", "#schema", "#stop")
        if not page.find(selector).accessible_name
    ]
    assert page.find("#budget").get_attribute("aria-valuetext") == "64 of 576 (11 %)"


def test_a_narrow_screen_needs_no_sideways_scrolling(page, scripted):
    size = {"width": 320, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.open(scripted).previewed(64)
    page.ask()
    page.summary()
    assert page.driver.execute_script("return document.documentElement.scrollWidth") == 320
    pruned, full = page.find("#pruned").rect, page.find("#full").rect
    assert pruned["x"] == full["x"]
    assert pruned["y"] + pruned["height"] <= full["y"]


def test_a_wide_screen_shows_both_answers_side_by_side(page, scripted):
    page.open(scripted).previewed(64)
    pruned, full = page.find("#pruned").rect, page.find("#full").rect
    assert pruned["y"] == full["y"]
    assert pruned["x"] + pruned["width"] <= full["x"]


def test_nothing_comes_from_elsewhere_and_the_policy_forbids_it(page, engine):
    guard = Guard(create_app(Settings(clip_model="none"), engine))
    with live_server(guard) as url:
        page.open(url).previewed(64)
        loaded = page.driver.execute_script(
            "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        )
        assert {name.removeprefix(url).split("?")[0] for name in loaded if not name.startswith("data:")} <= set(
            guard.paths
        )
        script = (
            "const s = document.createElement('script'); s.textContent = 'window.injected = 1'; document.body.append(s)"
        )
        page.driver.execute_script(script)
        assert page.driver.execute_script("return window.injected") is None
        blocked = page.driver.execute_async_script(
            "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'), (e) => done(e.message))"
        )
        assert blocked == "Failed to fetch"
    log = [entry["message"] for entry in page.driver.get_log("browser")]
    assert sum("Content Security Policy" in message for message in log) >= 2


def test_the_apis_page_shows_what_can_be_asked_and_nothing_is_blocked(page, engine):
    with live_server(create_app(Settings(clip_model="none", api_key="one"), engine)) as url:
        page.driver.get(url)
        page.driver.execute_script("sessionStorage.setItem('covervlm-key', 'one')")
        page.driver.get(f"{url}/docs")
        shown = page.wait(lambda: page.driver.find_elements(By.CSS_SELECTOR, ".opblock-summary-path"))
        assert "/v1/completions" in [element.text.replace("\u200b", "") for element in shown]
