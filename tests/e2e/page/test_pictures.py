"""Pictures of every tab, filled, at three widths, light and dark: nothing lies outside the window.

They are written to results/page/. `make page-pictures` copies those in the README to docs/.
"""

import io
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("selenium")

pytestmark = pytest.mark.browser

FOLDER = Path("results/page")
SIZES = {390: 800, 1024: 860, 1600: 1000}
"""Of a phone, a tablet and a large window: width and height."""
SHOWN = {"page-ask": "ask-1600-light", "page-label": "label-1024-light", "page-group": "group-1024-dark"}
SHOWN |= {"page-phone": "ask-390-dark"}

OUTSIDE = """
const wide = document.documentElement.clientWidth;
return [...document.querySelectorAll("body *")].filter((one) => {
  const box = one.getBoundingClientRect();
  if (!box.width || !box.height || (box.left >= -1 && box.right <= wide + 1)) return false;
  for (let at = one; at && at !== document.body; at = at.parentElement) {
    if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(at).overflowX)) return false;
  }
  return true;
}).map((one) => one.outerHTML.slice(0, 100));
"""


def photographed(page, name):
    """The window as a PNG with a palette, which keeps colors that few pixels have, at a third of the size."""
    shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    FOLDER.mkdir(parents=True, exist_ok=True)
    shot.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
        FOLDER / f"{name}.png", optimize=True
    )


def use(page, tab):
    """Has a tab show what it is for."""
    if tab in ("ask", "traffic"):
        page.press("#tab-ask")
        page.choose("#third", "uniform")
        page.previewed(64)
        page.ask()
        assert page.summary().count("instead of 590") == 2
        page.press(f"#tab-{tab}")
    if tab == "traffic":
        page.wait(lambda: page.all(".tile"))
    if tab in ("label", "group"):
        page.press(f"#{tab}-try")
        page.wait(lambda: page.text(f"#{tab}-said").startswith(("24 pictures labelled", "4 groups")))


def first_result(page, tab):
    """On a phone the controls fill the window: what they have led to is a little below."""
    script = "document.querySelector(arguments[0]).scrollIntoView()"
    page.driver.execute_script(script, {"ask": "#results", "traffic": "#tab-ask"}.get(tab, f"#{tab}-said"))


@pytest.mark.parametrize("tab", ["ask", "label", "group", "traffic"])
def test_nothing_lies_outside_the_window_at_any_width(page, url, tab):
    page.look_at(1024, SIZES[1024])
    page.open(url, tab)
    use(page, tab)
    for width, height in SIZES.items():
        for dark in (False, True):
            page.look_at(width, height, dark=dark)
            page.driver.execute_script("scrollTo(0, 0)")
            if width == min(SIZES):
                first_result(page, tab)
            photographed(page, f"{tab}-{width}-{'dark' if dark else 'light'}")
            assert page.driver.execute_script(OUTSIDE) == [], (width, dark)
            assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
    if os.environ.get("COVERVLM_PAGE_PICTURES"):
        for shown, name in SHOWN.items():
            if name.startswith(tab):
                shutil.copyfile(FOLDER / f"{name}.png", Path("docs") / f"{shown}.png")
