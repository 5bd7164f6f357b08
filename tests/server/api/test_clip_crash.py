"""A server process that is killed with SIGKILL, and what the next one over the same data folder knows."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.server.api.clip_app import SHAPES, noise, urls

COVERVLM = [str(Path(sys.executable).with_name("covervlm"))]


@contextmanager
def server(
    folder: Path, *options: str, program: list[str] = COVERVLM
) -> Iterator[tuple[httpx.Client, subprocess.Popen]]:
    """`covervlm serve` in a process of its own; killed at the end, if it still lives."""
    command = [*program, "serve", "--port", "0", "--data-dir", str(folder), *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    try:
        url = next(line for line in process.stdout if line.startswith("covervlm serves ")).rpartition(" ")[2].strip()
        with httpx.Client(base_url=url, timeout=120) as client:
            yield client, process
    finally:
        process.kill()
        process.wait()


def test_a_killed_server_comes_back_with_its_classifiers_projections_jobs_and_sessions(tmp_path):
    observe = "/v1/streams/{}/observe"
    keys = [{"Idempotency-Key": str(i)} for i in range(3)]
    batches = [[noise(100 * i + j) for j in range(n)] for i, n in enumerate((40, 30, 5))]
    with server(tmp_path) as (client, process):
        fit = {"name": "shapes", "classes": SHAPES, "images": urls(4), "parameters": {"iterations": 5}}
        done = client.post("/v1/classifiers", json=fit).json()["id"]
        while client.get(f"/v1/jobs/{done}").json()["finished"] is None:
            time.sleep(0.05)
        session = client.post("/v1/streams", json={"classes": SHAPES, "horizon": 100}).json()["id"]
        answers = [
            client.post(observe.format(session), json={"images": images}, headers=key).json()
            for images, key in zip(batches[:2], keys[:2], strict=True)
        ]
        while client.get(f"/v1/streams/{session}").json()["snapshot_observed"] < 70:
            time.sleep(0.05)
        long = fit | {"name": "long", "parameters": {"iterations": 100_000, "tolerance": 0}, "images": urls(8)}
        examples = [{"image": image, "label": SHAPES[i % 2]} for i, image in enumerate(urls(8))]
        labelled = {"name": "shapes", "examples": examples, "method": "mlp"}
        second = client.post("/v1/classifiers", json=labelled | {"parameters": {"epochs": 1}}).json()["id"]
        while client.get(f"/v1/jobs/{second}").json()["finished"] is None:
            time.sleep(0.05)
        labels = client.post("/v1/classify", json={"images": urls(2), "classifier": "shapes@2"}).json()
        space = {"name": "space", "examples": examples, "parameters": {"epochs": 1}}
        third = client.post("/v1/projections", json=space).json()["id"]
        while client.get(f"/v1/jobs/{third}").json()["finished"] is None:
            time.sleep(0.05)
        asked = {"model": "demo-clip/space", "input": "a star"}
        vector = client.post("/v1/embeddings", json=asked).json()
        running = client.post("/v1/classifiers", json=long).json()["id"]
        waiting = client.post("/v1/classifiers", json=labelled).json()["id"]
        while client.get(f"/v1/jobs/{running}").json()["state"] != "running":
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    with server(tmp_path) as (client, _):
        assert client.get(f"/v1/jobs/{done}").json()["state"] == "succeeded"
        for unfinished in (running, waiting):
            failed = client.get(f"/v1/jobs/{unfinished}").json()
            assert (failed["state"], failed["error"]["code"]) == ("failed", "server_restarted")
        kept = [(c["name"], c["version"]) for c in client.get("/v1/classifiers").json()["data"]]
        assert kept == [("shapes", 1), ("shapes", 2)]
        for name in ("shapes@2", "shapes"):
            assert client.post("/v1/classify", json={"images": urls(2), "classifier": name}).json() == labels
        assert client.get("/v1/classifiers/shapes").json()["about"]["report"]["held_out"] == 8
        assert client.post("/v1/embeddings", json=asked).json() == vector
        assert [card["version"] for card in client.get("/v1/projections").json()["data"]] == [1]
        assert "demo-clip/space" in [card["id"] for card in client.get("/v1/models").json()["data"]]
        state = client.get(f"/v1/streams/{session}").json()
        assert state["observed"] == state["snapshot_observed"] == 70
        for images, key, answer in zip(batches[:2], keys[:2], answers, strict=True):
            assert client.post(observe.format(session), json={"images": images}, headers=key).json() == answer
        last = client.post(observe.format(session), json={"images": batches[2]}, headers=keys[2]).json()
        assert last["observed"] == 75
