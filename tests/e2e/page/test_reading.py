"""The page for everybody: by keyboard, by screen reader, on small and wide screens, in light and dark."""

from itertools import pairwise

import pytest

from covervlm.server.demo import example_scenes
from tests.e2e.page.browser import FIRST, SECOND
from tests.e2e.page.stand_ins import Held

pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.browser

TABS = ("ask", "label", "group", "traffic")

# Every text in sight whose colour is too close to what lies behind it (WCAG 2.1, 1.4.3). Backgrounds are opaque or
# absent, so no colours are mixed.
FAINT = """
const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const color = numbers(getComputedStyle(one).backgroundColor);
    if (color.length === 3 || color[3] === 1) return color;
  }
  return [255, 255, 255];
};
const faint = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
  if (element.closest("svg, :disabled, label:has(:disabled)")) continue;
  const style = getComputedStyle(element);
  const [one, other] = [light(numbers(style.color)), light(behind(element))].sort((a, b) => b - a);
  const ratio = (one + 0.05) / (other + 0.05);
  if (ratio < 4.5) faint.push([texts.currentNode.data.trim().slice(0, 40), ratio.toFixed(2)]);
}
return faint;
"""


def test_the_keyboard_alone_is_enough(page, scripted, engine):
    page.open(scripted).previewed(64)
    order = []
    while not order or order[-1] != "ask":
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        active = page.driver.switch_to.active_element
        order.append(active.get_attribute("id") or active.get_attribute("name") or active.tag_name)
        if order[-1] == "example":
            active.send_keys(Keys.ARROW_RIGHT)
        assert len(order) < 30
    top = ["a", "a", "summary", "tab-ask", "welcome-close"]
    assert order == [*top, "example", "file", "question", "budget", "method", "second", "third", "summary", "ask"]
    page.wait(lambda: page.find("#question").get_attribute("value") == example_scenes()[1].question)
    page.find("#question").send_keys(Keys.ENTER)
    page.summary()
    assert engine.requests[-1].messages[0].text == example_scenes()[1].question


def test_arrow_keys_move_between_tabs_and_the_address_keeps_the_tab(page, scripted):
    page.open(scripted).find("#tab-ask").send_keys(Keys.ARROW_LEFT)
    assert page.driver.switch_to.active_element == page.find("#tab-traffic")
    shown = [name for name in TABS if page.find(f"#panel-{name}").is_displayed()]
    assert shown == ["traffic"]
    assert page.driver.current_url == f"{scripted}/#traffic"
    page.driver.refresh()
    page.wait(lambda: page.find("#panel-traffic").is_displayed())


def test_every_control_and_picture_has_a_name_for_screen_readers(page, scripted):
    for tab in TABS:
        page.open(scripted, tab)
        for closed in page.all("details"):
            page.driver.execute_script("arguments[0].open = true", closed)
        controls = [one for one in page.all("input, select, textarea, button, canvas, a") if one.is_displayed()]
        assert len(controls) >= 9
        assert [one.get_attribute("outerHTML") for one in controls if not one.accessible_name] == []
    page.open(scripted)
    assert page.find("#budget").get_attribute("aria-valuetext") == "64 of 576 (11 %)"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_what_lies_behind_it(page, scripted, dark):
    page.look_at(1280, 1000, dark=dark)
    for tab in TABS:
        page.open(scripted, tab)
        if tab == "ask":
            page.ask()
            page.summary()
            page.find("#budget").send_keys(Keys.HOME)
        assert page.driver.execute_script(FAINT) == []


@pytest.mark.parametrize("width", [320, 390, 900, 1600])
def test_no_tab_needs_sideways_scrolling(page, scripted, width):
    page.look_at(width, 700, mobile=width < 600)
    for tab in TABS:
        page.open(scripted, tab)
        assert page.driver.execute_script("return document.documentElement.scrollWidth") == width


def test_a_small_screen_shows_all_answers_without_a_scroll(page, scripted):
    page.look_at(390, 844, mobile=True)
    page.open(scripted).previewed(64)
    page.ask()
    page.summary()
    inside = "const r = arguments[0].getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight"
    for column in (FIRST, SECOND):
        page.wait(lambda column=column: page.driver.execute_script(inside, page.find(f"{column} .answer")))
    first, second = page.find(FIRST).rect, page.find(SECOND).rect
    assert first["x"] == second["x"]
    assert first["y"] + first["height"] <= second["y"]


def test_a_wide_screen_shows_answers_side_by_side(page, scripted):
    page.look_at(1600, 1000)
    page.open(scripted).previewed(64)
    page.choose("#third", "uniform")
    boxes = [page.find(f".column:nth-child({number})").rect for number in (1, 2, 3)]
    assert len({box["y"] for box in boxes}) == 1
    for left, right in pairwise(boxes):
        assert left["x"] + left["width"] <= right["x"]


def test_controls_are_large_enough_for_a_finger(page, scripted):
    page.look_at(390, 844, mobile=True)
    page.open(scripted).previewed(64)
    for selector in ("#budget", "#ask", "#question", "#method", "#tab-label", "#form .drop"):
        assert page.find(selector).rect["height"] >= 44, selector


def test_a_newcomer_is_told_what_to_do_once(page, scripted):
    page.open(scripted)
    assert "Press Ask" in page.text("#welcome")
    page.press("#welcome-close")
    page.driver.refresh()
    page.wait(lambda: page.find("body[data-ready]"))
    assert not page.find("#welcome").is_displayed()
    for tab in ("label", "group"):
        page.open(scripted, tab)
        assert page.find(f"#{tab}-try").is_displayed()


def test_the_apis_reference_is_one_press_away(page, scripted):
    page.open(scripted)
    links = [link.get_attribute("href") for link in page.all("nav a")]
    assert links == [f"{scripted}/docs", f"{scripted}/openapi.json"]


def test_an_answer_on_its_way_is_announced_and_nothing_takes_the_focus(page, scripted, engine):
    engine.script = script = Held()
    page.open(scripted).ask()
    page.wait(lambda: page.text(f"{FIRST} .answer") == "a red")
    assert page.find(f"{FIRST} .answer").get_attribute("aria-live") == "polite"
    assert page.driver.switch_to.active_element.tag_name in ("body", "button")
    page.choose("#second", "")
    script.go_on()
    page.wait(lambda: page.text(f"{FIRST} .answer") == "a red circle")
    page.press("#stop")
