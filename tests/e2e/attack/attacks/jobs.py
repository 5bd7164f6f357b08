"""Work in the background: what queued jobs hold, and one key's long jobs against another key's short ones."""

import asyncio
import functools
import io
import json
import time
from typing import Any

import numpy as np

from tests.e2e.attack import images, process
from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.registry import REFUSED, attack
from tests.e2e.attack.target import ATTACKER, WELL_BEHAVED

STARTED = REFUSED | {200, 201, 202, 409}
PATIENCE = 20.0
"""Seconds in which another key's short job has ended, whatever this one has queued."""


@functools.cache
def embeddings(rows: int, dimensions: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).standard_normal((rows, dimensions)).astype("<f4"))
    return file.getvalue()


async def dimensions(attacker: Attacker, key: str) -> int:
    answer = await attacker.post("/v1/embeddings", {"input": "a"}, key=key, counted=False)
    return len(answer.json()["data"][0]["embedding"])


async def upload(attacker: Attacker, key: str, rows: int) -> str:
    data = embeddings(rows, await dimensions(attacker, key))
    answer = await attacker.post("/v1/embeddings/uploads", data, key=key, counted=False)
    return str(answer.json()["id"])


async def fit(attacker: Attacker, name: str, uploaded: str, *, iterations: int, key: str, **options: Any) -> Any:
    body = {
        "name": name,
        "classes": [f"class {i}" for i in range(50)],
        "templates": ["{}"],
        "uploads": [uploaded],
        "parameters": {"iterations": iterations, "tolerance": 0},
    }
    return await attacker.post("/v1/classifiers", body, key=key, **options)


async def cancel_all(attacker: Attacker, key: str) -> None:
    listed = await attacker.request("GET", "/v1/jobs", key=key, counted=False)
    for job in listed.json()["data"]:
        if job["finished"] is None:
            await attacker.request("DELETE", f"/v1/jobs/{job['id']}", key=key, counted=False)


async def finished(attacker: Attacker, job: str, seconds: float = 20) -> dict[str, Any]:
    """The job's last state, or what it is when the time is over."""
    end = time.monotonic() + seconds
    while True:
        state = (await attacker.request("GET", f"/v1/jobs/{job}", counted=False)).json()
        if state["finished"] is not None or time.monotonic() > end:
            return dict(state)
        await asyncio.sleep(0.1)


@attack("one key's long jobs before another key's short one", answers=STARTED, once=True, limit=40)
async def long_jobs(attacker: Attacker) -> None:
    long, short = await upload(attacker, ATTACKER, 20_000), await upload(attacker, WELL_BEHAVED, 50)
    for number in range(8):
        await fit(attacker, f"long-{number}", long, iterations=100_000, key=ATTACKER)
    began = time.monotonic()
    started = await fit(attacker, "short", short, iterations=20, key=WELL_BEHAVED)
    state = started.json()
    try:
        while state.get("finished") is None and time.monotonic() < began + PATIENCE:
            await asyncio.sleep(0.2)
            asked = await attacker.request("GET", f"/v1/jobs/{state['id']}", key=WELL_BEHAVED, counted=False)
            state = asked.json()
        if state.get("state") != "succeeded":
            attacker.complain(f"another key's short job is {state.get('state')} after {PATIENCE:.0f} s")
    finally:
        await cancel_all(attacker, WELL_BEHAVED)
        await cancel_all(attacker, ATTACKER)
        await attacker.request("DELETE", "/v1/classifiers/short", key=WELL_BEHAVED, counted=False)
        await attacker.request("DELETE", f"/v1/embeddings/uploads/{long}", key=ATTACKER, counted=False)
        await attacker.request("DELETE", f"/v1/embeddings/uploads/{short}", key=WELL_BEHAVED, counted=False)


@attack("jobs cancelled while queued, then new ones", answers=STARTED, once=True, limit=40)
async def cancelled_jobs(attacker: Attacker) -> None:
    long = await upload(attacker, ATTACKER, 20_000)
    try:
        for round_ in range(3):
            for number in range(8):
                started = await fit(attacker, f"c-{round_}-{number}", long, iterations=100_000, key=ATTACKER)
                if started.status == 429:
                    attacker.complain("a place in the queue is taken by a job that was cancelled")
            await cancel_all(attacker, ATTACKER)
            await asyncio.sleep(1)
    finally:
        await cancel_all(attacker, ATTACKER)
        await attacker.request("DELETE", f"/v1/embeddings/uploads/{long}", key=ATTACKER, counted=False)


@attack("pictures of queued jobs", answers=STARTED, once=True, limit=60, make=images.large_png)
async def queued_pictures(attacker: Attacker) -> None:
    long = await upload(attacker, ATTACKER, 20_000)
    body = json.dumps({"aspect": "color", "words": ["red", "blue"], "images": [images.large_png()] * 3}).encode()
    try:
        await fit(attacker, "long", long, iterations=100_000, key=ATTACKER)
        for _ in range(7):
            await attacker.post("/v1/clusterings", body)
        # A queued job that is cancelled gives back what it holds while others still run.
        listed = (await attacker.request("GET", "/v1/jobs", counted=False)).json()["data"]
        for job in listed:
            if job["state"] == "queued":
                await attacker.request("DELETE", f"/v1/jobs/{job['id']}", counted=False)
        await asyncio.sleep(2)
        charged = attacker.target.charged()
        left = await asyncio.to_thread(resident_beyond_idle, attacker)
        if left > 512 * 2**20:
            attacker.complain(
                f"{left / 2**20:.0f} MiB kept ({charged / 2**20:.0f} charged) for jobs that are cancelled"
            )
    finally:
        await cancel_all(attacker, ATTACKER)
        await attacker.request("DELETE", f"/v1/embeddings/uploads/{long}", key=ATTACKER, counted=False)


def resident_beyond_idle(attacker: Attacker) -> int:
    return process.resident(attacker.target.pid) - attacker.target.idle


@attack("uploads of embeddings, as large as they may be", answers=STARTED, limit=30)
async def large_uploads(attacker: Attacker) -> None:
    width = await dimensions(attacker, WELL_BEHAVED)
    data = embeddings(40 * 2**20 // 4 // width, width)
    answers = [await attacker.post("/v1/embeddings/uploads", data) for _ in range(12)]
    for answer in answers:
        if answer.status == 201:
            await attacker.request("DELETE", f"/v1/embeddings/uploads/{answer.json()['id']}", counted=False)


@attack("200 watchers of a job that does not end", answers=STARTED, once=True, limit=30)
async def watchers(attacker: Attacker) -> None:
    long = await upload(attacker, ATTACKER, 20_000)
    try:
        job = (await fit(attacker, "watched", long, iterations=100_000, key=ATTACKER)).json()["id"]
        head = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ATTACKER}\r\n\r\n"
        for _ in range(200):
            _, writer = await attacker.connect()
            writer.write(head.encode())
        await asyncio.sleep(3)
    finally:
        await cancel_all(attacker, ATTACKER)
        await attacker.request("DELETE", f"/v1/embeddings/uploads/{long}", key=ATTACKER, counted=False)
