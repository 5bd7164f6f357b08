"""Runs one attack beside a well-behaved caller, and judges what that did to everybody else.

(a) /health answers within HEALTH seconds throughout. A slower answer is excused by the machine's own delay, but by no
more than HEALTH: by the bystander's slowest answer of the same moment, /health's slowest of the last quiet moments, or
as other programs leave fewer of the processors to the server and its callers.
(b) The well-behaved caller keeps at least SHARE of the throughput of the quiet moments before this attack and the last
few on the same server.
(c) Memory beyond the idle server's never passes what requests in flight may hold and WORKING; nor does the server's own
gauge of it pass the limit.
(d) Within BACK seconds after the attacker has left, nothing is charged, memory is within KEPT of the idle server's,
threads, files and tasks are what they were, nothing is computed, and the attacker's normal requests are answered; the
well-behaved caller's are in the quiet moments that follow.

What fails in time alone (a and b), and by less than four and two times, is tried again, TRIES times at most: quiet
moments and attack take turns, (b) is judged by all of them together, and (a) by the last.
"""

import asyncio
import contextlib
import math
import os
import statistics
import threading
import time

from tests.e2e.attack import process
from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.caller import KINDS
from tests.e2e.attack.figures import HEALTH, SHARE, Figures, asked
from tests.e2e.attack.pace import Slice
from tests.e2e.attack.probe import LONGEST
from tests.e2e.attack.registry import Attack
from tests.e2e.attack.served import ATTACKER, INFLIGHT, Served

WORKING = 512 * 2**20
"""Memory for what requests become inside the model, and for what allocators keep."""
KEPT = 256 * 2**20
BACK = 10.0
POOLS = 24
"""Threads that pools may grow by from the idle server on, however many attacks it has seen."""
TRIES = 4
QUIET, WINDOW = 0.5, 1.0
"""Seconds before an attack, and in which it is repeated."""
PROCESSORS = os.cpu_count() or 1
CEILING = 4 * 2**30
"""Beyond the idle server; one that takes more is ended, before the machine suffers."""
MIB = 2**20


class _Watch:
    """Follows the server's memory and gauge from a thread, and ends a server that takes too much of the machine."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.gauge = 0.0
        self.ended_it = False
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._memory, self._gauge)]

    def __enter__(self) -> "_Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _memory(self) -> None:
        while not self._over.wait(0.1):
            if process.resident(self.served.pid) > self.served.idle + CEILING:
                self.ended_it = True
                self.served.server.kill()
                return

    def _gauge(self) -> None:
        while not self._over.wait(0.25):
            with contextlib.suppress(OSError):
                self.gauge = max(self.gauge, self.served.gauges()["covervlm_inflight_bytes"])


async def measured(served: Served, attack: Attack) -> Figures:
    """The attack's figures, of its last try where it was tried again."""
    await asyncio.to_thread(attack.make)
    under = Slice()
    earlier: list[tuple[float, float]] = []
    while True:
        figures, part = await _once(served, attack, under)
        under += part
        figures.earlier = list(earlier)
        if not figures.marginal or len(earlier) == TRIES - 1:
            return figures
        earlier.append((figures.worst, figures.kept))


async def _once(served: Served, attack: Attack, under: Slice) -> tuple[Figures, Slice]:
    """The figures, and how the well-behaved caller got on; `under` tells how it did in the tries before."""
    figures = Figures(attack.name)
    served.resume()
    quiet = time.monotonic()
    await _quiet(served, quiet)
    held = await asyncio.to_thread(_held, served)
    process.forget_peak(served.pid)
    used = _others(served)
    attacker = Attacker(served)
    begin = time.monotonic()
    with _Watch(served) as watch:
        await _send(attack, attacker, begin)
        figures.window = (end := time.monotonic()) - begin
        figures.others = (_others(served) - used) / figures.window
        attacker.leave()
        await asyncio.to_thread(_after, served, figures, held, end)
    over = time.monotonic()
    figures.peak = (process.peak(served.pid) - served.idle) / MIB if served.alive else math.inf
    figures.gauge = watch.gauge / MIB
    await asyncio.to_thread(_wait_for_probe, served, over)
    _remember_quiet(served, quiet, begin)
    part = _judge_throughput(served, figures, begin, end, under)
    _judge_health(served, attack, figures, begin, over)
    if figures.peak > (INFLIGHT + WORKING) / MIB or watch.gauge > INFLIGHT:
        figures.problems["c"] = f"memory beyond the idle server reached {figures.peak:.0f} MiB"
        if watch.ended_it:
            figures.problems["c"] = f"more than {CEILING // MIB} MiB; ended by the harness"
    if not served.alive and not watch.ended_it:
        figures.problems["d"] = f"the server ended with status {served.server.returncode}"
    figures.answers = ", ".join(f"{count} x {status or 'none'}" for status, count in sorted(attacker.answers.items()))
    if wrong := sorted(set(attacker.answers) - attack.answers):
        figures.problems["e"] = f"answers {wrong}"
    if attacker.complaints:
        figures.problems["e"] = "; ".join(dict.fromkeys(attacker.complaints))
    return figures, part


async def _quiet(served: Served, began: float) -> None:
    """Long enough to tell the well-behaved caller's pace, also on a slow machine."""
    while (now := time.monotonic()) < began + QUIET or (
        now < began + 10 * QUIET and len(asked(served.caller.lines, began, now)) < KINDS
    ):
        await asyncio.sleep(0.05)


async def _send(attack: Attack, attacker: Attacker, begin: float) -> None:
    """Until the window is over, or once; no longer than the attack's limit, nor than the server lives."""

    async def send() -> None:
        await attack.send(attacker)
        while not attack.once and time.monotonic() < begin + WINDOW:
            await attack.send(attacker)

    sending = asyncio.ensure_future(send())
    while not sending.done() and time.monotonic() < begin + attack.limit and attacker.served.alive:
        await asyncio.wait([sending], timeout=0.1)
    if not sending.done():
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        return
    if error := sending.exception():
        attacker.complain(f"the attack itself ended with {error!r}")
    if (left := begin + WINDOW - time.monotonic()) > 0:
        await asyncio.sleep(left)


def _held(served: Served) -> tuple[int, int]:
    return process.files(served.pid), served.tasks()


def _others(served: Served) -> float:
    """Processor seconds so far of all that is neither the server nor the harness."""
    ours = process.seconds(os.getpid())
    if served.pid not in process.tree(os.getpid()):
        ours += process.seconds(served.pid)
    return process.machine_seconds() - ours


# (d)


def _after(served: Served, figures: Figures, held: tuple[int, int], gone: float) -> None:
    """Waits until all is given back."""
    served.pause()
    paused = time.monotonic()
    wrong = ""
    while served.alive:
        wrong = _not_back(served, figures, held)
        figures.back = time.monotonic() - gone
        if not wrong or time.monotonic() > paused + BACK:
            break
        time.sleep(0.1)
    if served.alive and not wrong and not served.works(ATTACKER):
        wrong = "the attacker is not served any more"
    if wrong:
        figures.problems["d"] = wrong


def _not_back(served: Served, figures: Figures, held: tuple[int, int]) -> str:
    """What is still missing, "" for nothing."""
    began, used = time.monotonic(), process.seconds(served.pid)
    try:
        figures.charged = served.gauges()["covervlm_inflight_bytes"]
        figures.tasks = served.tasks() - held[1]
    except OSError as error:
        return f"no answer: {error}"
    figures.threads = process.threads(served.pid) - served.idle_threads
    figures.files = process.files(served.pid) - held[0]
    time.sleep(max(0.0, began + 0.25 - time.monotonic()))
    busy = (process.seconds(served.pid) - used) / (time.monotonic() - began)
    figures.left = (process.resident(served.pid) - served.idle) / MIB
    missing = {
        f"{figures.charged / MIB:.1f} MiB charged": figures.charged > 0,
        f"{figures.left:.0f} MiB more in memory": figures.left > KEPT / MIB,
        f"{figures.threads} more threads": figures.threads > POOLS,
        f"{figures.files} more files": figures.files > 6,
        f"{figures.tasks} more tasks": figures.tasks > 6,
        f"{busy:.1f} cores at work": busy > served.idle_cores + 0.3,
    }
    return ", ".join(text for text, true in missing.items() if true)


# (a) and (b)


def _wait_for_probe(served: Served, moment: float) -> None:
    """Until questions that were under way at the moment have been answered or given up."""
    end = time.monotonic() + LONGEST + 5
    while time.monotonic() < end and served.alive:
        later = [entry for entry in asked(served.probe.lines[-200:], moment, math.inf) if entry.began > moment]
        if {"new", "kept", "still"} <= {entry.kind for entry in later}:
            return
        time.sleep(0.05)


def _judge_health(served: Served, attack: Attack, figures: Figures, begin: float, over: float) -> None:
    entries = asked(served.probe.lines, begin, over)
    still = [entry for entry in entries if entry.kind == "still"]
    health = [entry for entry in entries if entry.kind == ("kept" if attack.kept else "new")]
    if not health:
        figures.problems["a"] = "/health was not answered"
        return
    times = [LONGEST if not entry.good else entry.seconds for entry in health]
    figures.p50 = statistics.median(times) * 1000
    figures.p99 = sorted(times)[min(len(times) - 1, int(0.99 * len(times)))] * 1000
    figures.worst = max(times) * 1000
    left = max(PROCESSORS - figures.others, 0.1)
    machine = HEALTH * (PROCESSORS / left - 1)
    slow = 0.0
    for entry, seconds in zip(health, times, strict=True):
        if seconds > HEALTH:
            meanwhile = [other.seconds for other in still if other.ended > entry.began and other.began < entry.ended]
            excuse = min(max([*meanwhile, *served.quiet_health, machine]), HEALTH)
            figures.excused = max(figures.excused, excuse * 1000)
            slow = max(slow, seconds - excuse)
    if slow > HEALTH:
        figures.problems["a"] = f"/health took {slow * 1000:.0f} ms"


def _remember_quiet(served: Served, begin: float, end: float) -> None:
    entries = [entry for entry in asked(served.caller.lines, begin, end) if entry.began >= begin]
    served.quiet.append(Slice.of(entries, begin, end))
    probed = [entry.seconds for entry in asked(served.probe.lines, begin, end) if entry.kind == "new"]
    served.quiet_health.append(max(probed, default=0.0))


def _judge_throughput(served: Served, figures: Figures, begin: float, end: float, under: Slice) -> Slice:
    quiet = sum(served.quiet, Slice())
    during = asked(served.caller.lines, begin, end)
    part = Slice.of(during, begin, end)
    figures.before, figures.kept = quiet.per_second, (under + part).share_of(quiet)
    figures.slowest = max((entry.seconds for entry in during), default=end - begin)
    if figures.kept < SHARE:
        failed = sum(not entry.good for entry in during)
        figures.problems["b"] = f"{figures.kept:.0%} of the throughput" + (f", {failed} failed" if failed else "")
    if not any(quiet.counts.values()):
        figures.problems["d"] = "the well-behaved caller was not served before"
    return part
