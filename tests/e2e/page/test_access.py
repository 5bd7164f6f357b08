"""Who may use the page, and what it may load: keys, and the content security policy, in a real Chromium."""

import pytest

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.e2e.page.stand_ins import Guard
from tests.server.api.live import live_server

pytest.importorskip("selenium")
from selenium.webdriver.common.by import By

pytestmark = pytest.mark.browser


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
