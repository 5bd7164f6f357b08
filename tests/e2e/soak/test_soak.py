"""After thousands of mixed requests the server process holds what it held after its warm-up; prints a table of it."""

import asyncio
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.e2e.attack.target import ATTACKER
from tests.e2e.soak import server
from tests.e2e.soak.workload import KEYS, Workload

REQUESTS = 10_000
WARM_UP = 2_500
BLOCK = 2_500
AT_ONCE = 24
AT_ONCE_BESIDE_AN_ATTACKER = 32
RETURNED_WITHIN = 7.0
"""Seconds after the last request in which the server returns memory: 5 from trim to trim, and what they take."""
OPTIONS = (
    *("--port", "0", "--threads", "1", "--log-level", "error", "--max-running", "16", "--media-threads", "1"),
    *("--api-key", ",".join((*KEYS, ATTACKER)), "--adaptive-budget", "16:64"),
    *("--feature-cache-bytes", "24MiB", "--prefix-cache-bytes", "8MiB"),
)


@dataclass(frozen=True)
class Holdings:
    """What the idle server process holds. most_threads: once every pool has started all threads that it may have."""

    requests: int
    rss: int
    threads: int
    most_threads: int
    files: int
    sockets: int
    tasks: int
    objects: int
    inflight: int

    def row(self) -> str:
        return (
            f"{self.requests:>9,} {self.rss / 2**20:>9.1f} {self.threads:>8} {self.most_threads:>5} {self.files:>6} "
            f"{self.sockets:>8} {self.tasks:>6} {self.objects:>9,} {self.inflight:>9}"
        )


HEADER = " requests   RSS MiB  threads  most  files  sockets  tasks   objects  in flight"


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "tests.e2e.soak.server", *OPTIONS, "--data-dir", str(folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(server.__file__).parents[3]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=root)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("covervlm serves "))
        yield process, line.rpartition(" ")[2].strip()
    finally:
        process.terminate()
        assert process.wait(120) == 0


def gauges(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def holdings(pid: int, url: str, requests: int) -> Holdings:
    """Waits until nothing runs, all connections but this one are closed, and what was freed has gone back."""
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    async with httpx.AsyncClient(base_url=url, timeout=60, headers=headers) as client, asyncio.timeout(120):
        while True:
            seen = gauges((await client.get("/metrics")).text)
            idle = not seen["covervlm_num_requests_running"] and not seen["covervlm_num_requests_waiting"]
            links = [os.readlink(entry.path) for entry in _fds(pid)]
            sockets = sum(link.startswith("socket:") for link in links)
            counts = (await client.get("/debug/counts")).json()
            if idle and seen["covervlm_http_requests_in_flight"] == 1 and sockets <= 5:
                break
            await asyncio.sleep(0.2)
    threads = int(status(pid)["Threads"])
    return Holdings(
        requests,
        rss=await at_rest(pid),
        threads=threads,
        most_threads=threads + counts["threads_to_come"],
        files=len(links) - sockets,
        sockets=sockets,
        tasks=counts["tasks"],
        objects=counts["objects"],
        inflight=int(seen["covervlm_inflight_bytes"]),
    )


async def at_rest(pid: int) -> int:
    """RSS in bytes once it has not fallen for longer than the server takes to return what it does not need."""
    least, since = math.inf, time.monotonic()
    while time.monotonic() < since + RETURNED_WITHIN:
        await asyncio.sleep(0.2)
        now = int(status(pid)["VmRSS"].split()[0]) * 1024
        if now < least - 2**20:
            least, since = now, time.monotonic()
    return now


def status(pid: int) -> dict[str, str]:
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def _fds(pid: int) -> list[os.DirEntry[str]]:
    return list(os.scandir(f"/proc/{pid}/fd"))


async def send_all(url: str, numbers: range, at_once: int = AT_ONCE) -> Workload:
    """All requests, so many at a time, over connections that end with them."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        workload = Workload(client)
        waiting = iter(numbers)

        async def sender() -> None:
            for number in waiting:
                await workload.send(number)

        await asyncio.gather(*(sender() for _ in range(at_once)))
    return workload


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "requests", [pytest.param(2 * BLOCK, marks=pytest.mark.long), pytest.param(REQUESTS, marks=pytest.mark.exhaustive)]
)
async def test_thousands_of_mixed_requests_leave_nothing_behind(tmp_path, capsys, requests):
    started, sent, rows = time.perf_counter(), 0, []
    outcomes = None
    async with served(tmp_path) as (process, url):
        while sent < requests:
            block = range(sent, sent + (WARM_UP if not sent else BLOCK))
            done = (await send_all(url, block)).outcomes
            outcomes = done if outcomes is None else outcomes + done
            sent = block.stop
            rows.append(await holdings(process.pid, url, sent))
            with capsys.disabled():
                print("\n".join([f"\n{HEADER}", rows[-1].row()] if len(rows) == 1 else [rows[-1].row()]), flush=True)
    with capsys.disabled():
        kinds = ", ".join(f"{count} {kind} {status}" for (kind, status), count in sorted(outcomes.items()))
        print(f"{sent:,} requests in {time.perf_counter() - started:.0f} s: {kinds}")
    warm, end = rows[0], rows[-1]
    assert outcomes.total() == requests
    assert end.rss <= 1.1 * warm.rss
    assert end.most_threads <= warm.most_threads  # pools start threads at peaks, which may come late
    assert (end.files, end.sockets, end.tasks, end.inflight) == (warm.files, warm.sockets, warm.tasks, warm.inflight)
    assert end.objects <= 1.05 * warm.objects


@asynccontextmanager
async def attacked(url: str) -> AsyncIterator[subprocess.Popen[str]]:
    """Somebody attacks the server meanwhile, from a process of their own."""
    command = [sys.executable, "-m", "tests.e2e.soak.attacker", url.rpartition(":")[2]]
    root = Path(server.__file__).parents[3]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            draining = asyncio.ensure_future(asyncio.to_thread(process.stdout.read))
            yield process
            assert process.poll() is None, "the attacker gave up"
        finally:
            process.kill()
        print(f"{len((await draining).splitlines()):,} attacks")


@pytest.mark.exhaustive
@pytest.mark.timeout(5400)
async def test_ten_thousand_requests_beside_an_attacker_are_answered_in_time_and_leave_nothing_behind(tmp_path, capsys):
    """Their slowest twentieth takes twice as long at most as without the attacker."""
    callers = AT_ONCE_BESIDE_AN_ATTACKER
    async with served(tmp_path) as (process, url):
        await send_all(url, range(WARM_UP), callers)
        calm = await send_all(url, range(WARM_UP, 2 * WARM_UP), callers)
        before = await holdings(process.pid, url, 2 * WARM_UP)
        async with attacked(url):
            beside = await send_all(url, range(2 * WARM_UP, 2 * WARM_UP + REQUESTS), callers)
        after = await holdings(process.pid, url, 2 * WARM_UP + REQUESTS)
    with capsys.disabled():
        print("\n".join(["", HEADER, before.row(), after.row()]))
        print(f"95th percentile: {calm.slow:.3f} s without, {beside.slow:.3f} s beside the attacker")
    assert beside.outcomes.total() == REQUESTS
    assert beside.slow <= 2 * calm.slow
    assert after.rss <= 1.1 * before.rss
    assert (after.tasks, after.sockets, after.inflight) == (before.tasks, before.sockets, before.inflight)
