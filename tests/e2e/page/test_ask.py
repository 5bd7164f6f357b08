"""The tab "Ask" in a real Chromium: pictures, questions, and answers side by side."""

import base64
import io
import json

import pytest
from PIL import Image

from covervlm.server import create_app
from covervlm.server.core.errors import EngineError
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.settings import Settings
from tests.e2e.page.browser import FIRST, SCENE, SECOND, THIRD
from tests.e2e.page.stand_ins import Held
from tests.server.api.live import live_server
from tests.server.api.scripted import prompt_report, red_circle

pytest.importorskip("selenium")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.browser


def test_an_example_is_previewed_asked_and_compared(page, url):
    page.open(url)
    assert page.find("#question").get_attribute("value") == SCENE.question
    page.previewed(64)
    page.ask()
    summary = page.summary()
    assert "78 prompt tokens instead of 590" in summary
    assert summary.endswith("The answers agree.")
    for column in (FIRST, SECOND):
        assert page.text(f"{column} .answer") == SCENE.answer
        assert page.times(column)["Time to first token"].endswith(" ms")
    assert page.times(FIRST)["Prompt tokens"] == "78"
    assert page.times(SECOND)["Prompt tokens"] == "590"
    assert page.text(f"{SECOND} .badge") == "576 of 576 tokens"


def test_figures_of_both_answers_have_bars_on_one_scale(page, scripted):
    page.open(scripted).previewed(64)
    page.ask()
    summary = page.summary()
    bars = {column: page.all(f"{column} progress") for column in (FIRST, SECOND)}
    time, tokens = bars[FIRST]
    assert (float(tokens.get_attribute("value")), float(tokens.get_attribute("max"))) == (74, 586)
    assert tokens.get_attribute("max") == bars[SECOND][1].get_attribute("value")
    times = [float(bars[column][0].get_attribute("value")) for column in (FIRST, SECOND)]
    assert float(time.get_attribute("max")) == max(times)
    shown = [page.times(column)["Time to first token"] for column in (FIRST, SECOND)]
    told = f"74 prompt tokens instead of 586, first token after {shown[0]} instead of {shown[1]}."
    assert summary == f"{told} The answers agree."


def test_a_line_is_drawn_around_kept_patches_and_not_between_them(page, scripted):
    page.open(scripted).previewed(64)
    # Two full rows and 16 patches of the third, of 28 pixels each.
    colors = page.driver.execute_script(
        """
        const context = document.querySelector(arguments[1]).getContext("2d");
        return arguments[0].map(([x, y]) => [...context.getImageData(x, y, 1, 1).data].slice(0, 3));
        """,
        [[28, 14], [14, 28], [28 * 16, 70], [28 * 20, 56], [14, 84]],
        f"{FIRST} canvas",
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
    page.choose("#method", "uniform")
    page.wait(lambda: engine.requests[-1].pruning.method == "uniform")
    page.find("#budget").send_keys(Keys.END)
    page.previewed(576)
    assert page.lit() == list(range(576))


def test_the_answer_shows_while_it_is_being_made(page, scripted, engine):
    engine.script = script = Held()
    page.open(scripted).ask()
    page.wait(lambda: page.text(f"{FIRST} .answer") == "a red")
    assert not page.find("#ask").is_enabled()
    script.go_on()
    page.wait(lambda: page.text(f"{FIRST} .answer") == "a red circle")
    page.wait(lambda: page.text(f"{SECOND} .answer") == "a red")
    script.go_on()
    page.summary()
    assert page.find("#ask").is_enabled()
    assert [request.pruning.prunes for request in script.requests] == [True, False]


def test_stop_ends_the_generation_on_the_server_too(page, scripted, engine):
    engine.script = script = Held()
    page.open(scripted).ask()
    page.wait(lambda: page.text(f"{FIRST} .answer") == "a red")
    page.find("#stop").click()
    page.wait(lambda: script.requests[0].request_id in engine.released)
    page.wait(lambda: page.find("#ask").is_enabled())
    assert not page.find("#stop").is_displayed()
    assert not page.find("#error").is_displayed()
    assert page.text(f"{SECOND} .answer") == ""


def test_without_the_comparison_one_answer_is_made(page, scripted, engine):
    page.open(scripted).previewed(64)
    page.choose("#second", "")
    page.wait(lambda: not page.find(SECOND).is_displayed())
    page.ask()
    page.wait(lambda: page.times(FIRST))
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
    shown = page.driver.execute_script("return document.querySelector(arguments[0]).innerText", f"{FIRST} .answer")
    assert shown == json.dumps({"color": "red", "n": [1, 2]}, indent=2)
    assert page.text(f"{SECOND} .answer") == shown
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
    page.wait(lambda: "own.png" in page.text("#chosen"))
    page.find("#question").clear()
    page.find("#question").send_keys("What is this?")
    page.ask()
    page.summary()
    sent = engine.requests[-1]
    assert sent.images[0].image.size == (40, 20)
    assert sent.images[0].image.getpixel((3, 3)) == (10, 200, 30)
    assert sent.messages[0].text == "What is this?"
    canvas = page.find(f"{FIRST} canvas")
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
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        """,
        base64.b64encode(buffer.getvalue()).decode(),
    )
    page.wait(lambda: "dropped.png" in page.text("#chosen"))
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
    page.wait(lambda: page.text(f"{FIRST} .answer") == "a red")
    script.go_on()
    assert page.error() == "The engine stopped."
    assert page.text(f"{FIRST} .answer") == "a red"
    assert page.find("#ask").is_enabled()


def test_a_server_that_is_gone_is_told(page, engine):
    with live_server(create_app(Settings(clip_model="none"), engine)) as url:
        page.open(url).previewed(64)
    page.ask()
    assert page.error() == "The server cannot be reached."


def test_an_old_answer_is_marked_until_the_selection_is_the_same_again(page, scripted):
    page.open(scripted).previewed(64)
    page.ask()
    page.summary()
    page.find("#budget").send_keys(Keys.ARROW_RIGHT)
    page.previewed(65)
    assert page.text(f"{FIRST} .before") == f"Answered before: 64 tokens by mmtok, “{SCENE.question}”"
    # Every token is what it was: the budget says nothing of it.
    assert not page.find(f"{SECOND} .before").is_displayed()
    page.find("#budget").send_keys(Keys.ARROW_LEFT)
    page.previewed(64)
    assert not page.find(f"{FIRST} .before").is_displayed()
    page.find("#question").send_keys(" Really?")
    for column in (FIRST, SECOND):
        assert page.find(f"{column} .before").is_displayed()
    page.ask()
    page.wait(lambda: not page.find(f"{SECOND} .before").is_displayed() and page.find("#ask").is_enabled())
    assert not page.find(f"{FIRST} .before").is_displayed()


def test_three_methods_stand_side_by_side_and_are_compared_with_the_one_that_read_most(page, scripted, engine):
    engine.script = lambda request: [
        GenerationChunk(0, f"by {request.pruning.method}", 1, (), "stop", prompt_report(request))
    ]
    page.open(scripted).previewed(64)
    page.choose("#second", "uniform")
    page.choose("#third", "none")
    page.ask()
    summary = page.summary()
    answers = [page.text(f"{column} .answer") for column in (FIRST, SECOND, THIRD)]
    assert answers == ["by mmtok", "by uniform", "by none"]
    assert summary.startswith("mmtok: 74 prompt tokens instead of 586, first token after ")
    assert "uniform: 74 prompt tokens" in summary
    assert summary.endswith("The answers differ.")
    assert page.text(f"{SECOND} .badge") == "64 of 576 tokens"


def test_several_pictures_go_into_one_question_and_one_can_be_taken_back(page, scripted, engine, tmp_path):
    paths = [tmp_path / f"{color}.png" for color in ("red", "green", "blue")]
    for path in paths:
        Image.new("RGB", (30, 30), path.stem).save(path)
    page.open(scripted).previewed(64)
    page.find("#file").send_keys("\n".join(map(str, paths)))
    page.wait(lambda: page.text(f"{FIRST} .badge") == "192 of 1728 tokens")
    page.press("#chosen li:nth-child(2) button")
    page.wait(lambda: page.text(f"{FIRST} .badge") == "128 of 1152 tokens")
    page.ask()
    page.summary()
    sent = [one.image.convert("RGB").getpixel((3, 3)) for one in engine.requests[-1].images]
    assert sent == [(255, 0, 0), (0, 0, 255)]
    assert [one.get_attribute("aria-label") for one in page.all(f"{FIRST} canvas")] == [
        f"{name}.png, the 64 of 576 kept patches lit" for name in ("red", "blue")
    ]


def test_a_follow_up_sends_each_method_its_own_earlier_answer(page, scripted, engine):
    engine.script = lambda request: [
        GenerationChunk(0, f"by {request.pruning.method}", 1, (), "stop", prompt_report(request))
    ]
    page.open(scripted).previewed(64)
    assert not page.find("#follow").is_enabled()
    page.ask()
    page.summary()
    page.press("#follow")
    page.write("#question", "And why?")
    page.ask()
    page.wait(lambda: page.find(f"{SECOND} .turns").is_displayed() and page.find("#ask").is_enabled())
    assert page.text(f"{SECOND} .turns") == f"{SCENE.question}\nby none"
    asked = [request for request in engine.requests if request.sampling.temperature == 0][-2:]
    told = [[message.text for message in request.messages] for request in asked]
    assert told == [[SCENE.question, f"by {method}", "And why?"] for method in ("mmtok", "none")]
    assert [len(request.images) for request in asked] == [1, 1]
