"""Prometheus with the shipped configuration against a live server: every query of the dashboard returns data."""

import contextlib
import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from covervlm.server.demo import example_scenes
from covervlm.server.forecast.history import History
from tests.docker.dashboard import DOCKER, queries, runnable
from tests.server.api.clip_app import urls
from tests.server.forecast.traffic import daily, minutes

pytestmark = pytest.mark.dashboards
SECONDS = 120
TOKEN = "scraped"
CLASSES = ["circle", "square", "triangle"]


@contextlib.contextmanager
def running(*command: str, stderr: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS)


def seed(folder: Path) -> None:
    """What a server would have counted in four weeks whose evenings were more than it bears."""
    hours, now = 4 * 168, int(time.time() // 3600)
    history = History(folder)
    history.write(minutes(daily(hours), first=now - hours, bearable=400), now=now * 60)
    history.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of `covervlm serve` on the demo model, with a key, a token, and four weeks of traffic behind it."""
    command = [str(Path(sys.executable).with_name("covervlm")), "serve", "--port", "0", "--threads", "1"]
    folder = str(tmp_path_factory.mktemp("data"))
    seed(Path(folder))
    keys = ("--api-key", "sesame", "--metrics-token", TOKEN, "--shadow", "1")
    with running(*command, *keys, "--log-format", "json", "--data-dir", folder, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            if "covervlm serves demo on " in line:
                break
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield json.loads(line)["message"].split()[-1]


def configuration(folder: Path) -> Path:
    """The shipped one in a folder, with the token's file where compose.yaml has it written."""
    shutil.copytree(DOCKER / "prometheus", folder, dirs_exist_ok=True)
    (folder / "token").write_text(TOKEN)
    config = folder / "prometheus.yml"
    config.write_text(config.read_text().replace("/tmp/metrics-token", str(folder / "token")))
    return config


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory):
    """A client of a Prometheus that runs the shipped configuration, but scrapes this server, and every second."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = configuration(folder)
    config.write_text(config.read_text().replace("scrape_interval: 15s", "scrape_interval: 1s"))
    targets = folder / "targets" / "covervlm.yml"
    targets.write_text(targets.read_text().replace("covervlm:8000", server.removeprefix("http://")))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = (f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}")
    with running("prometheus", *options), httpx.Client(base_url=f"http://{address}/api/v1") as client:
        yield client


def ask(api: httpx.Client, number: int, **fields: object) -> None:
    scene = example_scenes()[number % len(example_scenes())]
    images = urls(1, first=number)
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": scene.question}]}
    body = {"model": "demo", "messages": [message], "max_tokens": 4, **fields}
    api.post("/v1/chat/completions", json=body).raise_for_status()


def traffic(api: httpx.Client, number: int) -> int:
    """A little of everything; returns how many chats were answered."""
    ask(api, number)
    ask(api, number, vision_pruning={"keep_tokens": 64})
    ask(api, number, vision_pruning={"keep_tokens": 16, "method": "uniform"}, stream=True)
    assert api.get("/nowhere").status_code == 404
    return 3


def values(prometheus: httpx.Client, query: str) -> list[float]:
    """The finite values of a query's result now; none while Prometheus starts."""
    try:
        answer = prometheus.get("/query", params={"query": query}).json()
    except httpx.TransportError:
        return []
    if answer["status"] != "success":
        assert answer["errorType"] == "unavailable", answer
        return []
    numbers = [float(series["value"][1]) for series in answer["data"]["result"]]
    return [number for number in numbers if math.isfinite(number)]


def test_every_query_of_the_dashboard_returns_data_and_counts_are_what_was_sent(server, prometheus):
    missing = {name: runnable(query, "20s") for name, query in queries().items()}
    assert len(missing) > 30
    chats, end = 0, time.monotonic() + SECONDS
    with httpx.Client(base_url=server, timeout=SECONDS, headers={"Authorization": "Bearer sesame"}) as api:
        api.post("/v1/streams", json={"classes": CLASSES, "horizon": 10}).raise_for_status()
        while missing and time.monotonic() < end:
            chats += traffic(api, chats)
            missing = {name: query for name, query in missing.items() if not values(prometheus, query)}
    assert not missing
    sent = 'sum(covervlm_http_requests_total{route="/v1/chat/completions",status="200"})'
    while values(prometheus, sent) != [chats] and time.monotonic() < end:
        pass
    assert values(prometheus, sent) == [chats]
    assert values(prometheus, "sum(covervlm_e2e_request_latency_seconds_count)") == [chats]
    assert values(prometheus, 'covervlm_vision_tokens_after_total{method="uniform"}') == [16 * chats / 3]
    assert values(prometheus, 'covervlm_vision_tokens_before_total{method="uniform"}') == [576 * chats / 3]
    assert values(prometheus, "covervlm_streams") == [1]


def test_no_alert_fires_for_a_healthy_server(prometheus):
    rules = prometheus.get("/rules", params={"type": "alert"}).json()["data"]["groups"][0]["rules"]
    assert len(rules) == 6
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert {rule["state"] for rule in rules} == {"inactive"}


def test_configuration_and_alerts_pass_promtool(tmp_path):
    command = ["promtool", "check", "config", str(configuration(tmp_path))]
    assert "6 rules found" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_alerts_fire_for_what_they_are_about(tmp_path):
    (tmp_path / "alerts.yml").write_text((DOCKER / "prometheus" / "alerts.yml").read_text())
    shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_itself_accepts_the_file():
    plugin = (
        shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )
    compose = ["docker", "compose"] if plugin else ["docker-compose"]
    done = subprocess.run([*compose, "-f", str(DOCKER / "compose.yaml"), "config"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == {"covervlm", "prometheus", "grafana"}
