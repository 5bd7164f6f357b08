"""The playground's page as a person sees it, in headless Chromium."""

import base64
import io

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

from covervlm.server.demo import example_scenes

SECONDS = 60
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync --window-size=1280,1000"
)
SCENE = example_scenes()[0]
FIRST, SECOND, THIRD = (f".column:nth-child({number})" for number in (1, 2, 3))
"""The answers side by side."""


def start(chromium: str, chromedriver: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ARGUMENTS.split():
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))


class Page:
    """The page as a person sees it."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url, tab="ask"):
        self.driver.get("about:blank")  # else another tab's address would not load the page anew
        self.driver.get(url if tab == "ask" else f"{url}/#{tab}")
        self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, "body[data-ready]"))
        return self

    def wait(self, condition):
        return WebDriverWait(self.driver, SECONDS, 0.05).until(lambda _: condition())

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.find(selector).text

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def press(self, selector):
        self.find(selector).click()

    def write(self, selector, text):
        self.find(selector).clear()
        self.find(selector).send_keys(text)

    def choose(self, selector, value):
        Select(self.find(selector)).select_by_value(value)

    def look_at(self, width, height, *, dark=False, mobile=False):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})

    def previewed(self, kept):
        self.wait(lambda: self.text(f"{FIRST} .badge") == f"{kept} of 576 tokens")

    def ask(self):
        self.wait(lambda: self.find("#ask").is_enabled())
        self.find("#ask").click()

    def summary(self):
        return self.wait(lambda: self.text("#summary"))

    def error(self, selector="#error"):
        return self.wait(lambda: self.find(selector).is_displayed() and self.text(selector))

    def times(self, column):
        # Read in one go, since the page replaces the entries while the answer comes in.
        script = (
            "return [...document.querySelectorAll(`${arguments[0]} dt`)].map("
            "dt => [dt.innerText, dt.nextElementSibling?.innerText ?? ''])"
        )
        return dict(self.driver.execute_script(script, column))

    def lit(self, column=FIRST):
        """Places of the 24 x 24 grid whose middle shows on the canvas as bright as in the picture itself."""
        url = self.driver.execute_script(f"return document.querySelector('{column} canvas').toDataURL()")
        shown = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
        plain = Image.open(SCENE.path).convert("RGB").resize(shown.size)
        width, height = shown.width / 24, shown.height / 24
        places = []
        for place in range(576):
            row, column = divmod(place, 24)
            box = [
                round(v)
                for v in (column * width + 5, row * height + 5, (column + 1) * width - 5, (row + 1) * height - 5)
            ]
            brightness = [sum(sum(pixel) for pixel in image.crop(box).getdata()) for image in (shown, plain)]
            if brightness[0] > 0.7 * brightness[1]:
                places.append(place)
        return places
