"""The tab "Label" in a real Chromium, over the demo's CLIP model."""

import pytest

from covervlm.server.demo import example_gallery

pytest.importorskip("selenium")

pytestmark = pytest.mark.browser

TRUTH = {path.name: path.name.split("-")[1] for path in example_gallery()}


def labels(page):
    """Name of each picture in the gallery, and the heading that it stands under."""
    script = """
    return Object.fromEntries([...document.querySelectorAll("#label-gallery .group")].flatMap((group) =>
      [...group.querySelectorAll(".card")].map((card) => [card.title, group.getAttribute("aria-label")])))
    """
    return page.driver.execute_script(script)


def test_pictures_are_labelled_corrected_trained_from_and_labelled_anew(page, url):
    page.open(url, "label").press("#label-try")
    page.wait(lambda: page.text("#label-said").startswith("24 pictures labelled"))
    found = labels(page)
    wrong = [name for name, label in found.items() if label != TRUTH[name]]
    assert set(found) == set(TRUTH)
    assert len(wrong) <= 3
    for name in wrong:
        page.press(f'.card[title="{name}"]')
        page.wait(lambda: page.find("#correction").is_displayed())
        next(one for one in page.all(".choice") if one.text.split("\n")[0] == TRUTH[name]).click()
        page.wait(lambda: not page.find("#correction").is_displayed())
        card = page.find(f'.card[title="{name}"]')
        assert card.text == "corrected"
        assert page.driver.switch_to.active_element == card
    assert labels(page) == TRUTH

    page.press("#train-start")
    page.wait(lambda: "has learned from 24 pictures" in page.text("#train-said"))
    trained = page.text("#train-said").split()[0]
    assert trained.startswith("my-labels@")
    assert "Right on held-out pictures" in page.text("#train-report")
    assert page.find("#stored").get_attribute("value") == trained
    assert page.find("#label-before").is_displayed()
    page.press("#label-start")
    page.wait(lambda: page.text("#label-said").startswith("24 pictures labelled"))
    assert not page.find("#label-before").is_displayed()
    assert labels(page) == TRUTH


def test_a_dropped_folder_is_labelled_with_names_of_ones_own(page, url, tmp_path):
    page.open(url, "label")
    page.find("#label-pictures-files").send_keys("\n".join(str(path) for path in example_gallery()[:3]))
    page.wait(lambda: page.text("#label-pictures .note") == "3 pictures chosen.")
    page.write("#classes", "blue, green,\nblue")
    page.press("#label-start")
    page.wait(lambda: page.text("#label-said").startswith("3 pictures labelled"))
    assert set(labels(page).values()) == {"blue"}
    page.find("#label-gallery .card").click()
    page.wait(lambda: page.find("#correction").is_displayed())
    page.find("#correction-other").send_keys("navy\n")
    page.wait(lambda: "navy" in labels(page).values())
    assert "1 corrected" in page.text("#label-said")


def test_what_is_missing_is_said_in_words(page, scripted):
    page.open(scripted, "label")
    assert "--clip-model" in page.error("#label-error")
    page.press("#label-start")
    page.wait(lambda: page.error("#label-error").startswith("Give at least two class names"))
    page.write("#classes", "cat, dog")
    page.press("#label-start")
    page.wait(lambda: page.error("#label-error").startswith("Choose pictures first"))
