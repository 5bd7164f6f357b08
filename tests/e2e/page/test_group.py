"""The tab "Group" in a real Chromium, over the demo's CLIP model."""

import pytest

from covervlm.server.demo import example_gallery

pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains

pytestmark = pytest.mark.browser

TRUTH = {path.name: path.name.split("-")[0] for path in example_gallery()}


def test_pictures_are_grouped_and_map_and_gallery_are_linked(page, url):
    page.open(url, "group").press("#group-try")
    page.wait(lambda: page.text("#group-said").startswith("4 groups of 24 pictures"))
    groups = {group.accessible_name: group for group in page.all("#group-gallery .group")}
    cards = {
        name: [card.get_attribute("title") for card in page.all(f'[aria-label="{name}"] .card')] for name in groups
    }
    assert {picture: name for name, pictures in cards.items() for picture in pictures} == TRUTH
    assert len(page.all("#plane .dot")) == 24

    # A group alone, in both places; the same press shows all again.
    legend = next(one for one in page.all("#legend button") if "red" in one.text)
    legend.click()
    assert legend.get_attribute("aria-pressed") == "true"
    assert [name for name, group in groups.items() if group.is_displayed()] == ["red"]
    assert len(page.all("#plane .dot:not(.dimmed)")) == len(cards["red"])
    legend.click()
    assert all(group.is_displayed() for group in groups.values())

    # A dot lights its card up, and a card its dot.
    dot = page.find("#plane .dot:last-child")  # nothing lies above it
    name = dot.find_element("css selector", "title").get_attribute("textContent")
    ActionChains(page.driver).move_to_element(dot).click().perform()
    assert page.driver.switch_to.active_element.get_attribute("title") == name
    other = next(card for card in page.all("#group-gallery .card") if card.get_attribute("title") != name)
    ActionChains(page.driver).move_to_element(other).perform()
    lit = "return document.querySelector('#plane .dot.lit title')?.textContent"
    page.wait(lambda: page.driver.execute_script(lit) == other.get_attribute("title"))

    page.write("#aspect", "shape")
    assert page.find("#group-before").is_displayed()


def test_what_is_missing_is_said_in_words(page, url):
    page.open(url, "group")
    page.write("#aspect", "color")
    page.press("#group-start")
    assert page.error("#group-error").startswith("Choose at least two pictures first")
    page.write("#words", "red")
    page.press("#group-start")
    page.wait(lambda: page.error("#group-error").startswith("Give at least two words"))
