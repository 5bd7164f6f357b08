"""The page in a real headless Chromium, over the demo model or over answers that a test scripts."""

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.live import live_server
from tests.server.api.scripted import ScriptedEngine, prompt_report

pytest.importorskip("selenium")
from tests.e2e.page.browser import Page, start


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
    driver.execute_script("localStorage.clear()")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
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
