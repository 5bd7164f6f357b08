"""Runs one attack beside a well-behaved caller, and judges what that did to everybody else.

The attacker is a process that gets only the processors that nobody else wants, as it would have its own in reality.

(a) /health answers within HEALTH seconds throughout. A slower answer is excused by the machine's own delay, but by no
more than HEALTH: by the bystander's slowest answer of the same moment, /health's slowest of the last quiet moments, or
as other programs leave fewer of the processors to the server and its callers.
(b) The well-behaved caller keeps at least SHARE of its throughput in the control: the same server in quiet moments
before this attack and the last few, less what it costs the caller that somebody sends as much as the attacker does,
over as many connections, to a process that discards it (see `Controls`).
(c) Memory beyond the idle server's never passes what requests in flight may hold and WORKING; nor does the server's own
gauge of it pass the limit.
(d) Within BACK seconds after the attacker has left, nothing is charged, memory is within KEPT of the idle server's,
threads, files and tasks are what they were, nothing is computed, and the attacker's normal requests are answered; the
well-behaved caller's are in the quiet moments that follow.

What fails in time alone (a and b) is tried TRIES times in all, or until most of them have missed the same: of each, the
median is judged, and all are in the table.
"""

import asyncio
import contextlib
import functools
import math
import os
import statistics
import threading
import time
from typing import Any

from tests.e2e.attack import process
from tests.e2e.attack.caller import KINDS
from tests.e2e.attack.children import Child, child
from tests.e2e.attack.figures import HEALTH, Figures, asked, decided, undecided
from tests.e2e.attack.pace import Slice
from tests.e2e.attack.probe import LONGEST
from tests.e2e.attack.registry import Attack
from tests.e2e.attack.served import Served
from tests.e2e.attack.target import ATTACKER, INFLIGHT
from tests.e2e.attack.traffic import Traffic

WORKING = 512 * 2**20
"""Memory for what requests become inside the model, and for what allocators keep."""
KEPT = 256 * 2**20
BACK = 10.0
POOLS = 24
"""Threads that pools may grow by from the idle server on, however many attacks it has seen."""
TRIES = 3
QUIET, WINDOW = 0.5, 1.0
"""Seconds before an attack, and in which it is repeated."""
CONTROLLED, TURNS = 0.4, 4
"""Seconds that a control and a quiet moment take, and how often they take turns."""
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
        while not self._over.wait(0.1) and self.served.alive:
            if process.resident(self.served.pid) > self.served.idle + CEILING:
                self.ended_it = True
                self.served.server.kill()
                return

    def _gauge(self) -> None:
        while not self._over.wait(0.25):
            with contextlib.suppress(OSError):
                self.gauge = max(self.gauge, self.served.charged())


class Attackers:
    """The attacker's process, and what its share in the machine was found to cost the well-behaved caller.

    That is measured once for each pace of traffic, with what has nearly the same (`Traffic.at_pace_of`).
    """

    def __init__(self) -> None:
        self.child: Child = child("attacking")
        self.controls: dict[tuple[float, float], float] = {}

    def do(self, what: str, *, within: float = 120, **command: object) -> dict[str, Any]:
        """What the process tells once it has done that. Raises TimeoutError."""
        return self.child.reply({"do": what, **command}, within)

    def control(self, served: Served, pace: Traffic) -> float:
        """What part of the quiet throughput remains beside this traffic to nobody, 1 at most."""
        if pace.shape not in self.controls:
            served.resume()
            quiet, beside = Slice(), Slice()
            for _ in range(TURNS):
                begin = time.monotonic()
                time.sleep(CONTROLLED)
                middle = time.monotonic()
                self.do("replay", pace=pace.shape, seconds=CONTROLLED)
                end = time.monotonic()
                quiet += Slice.of(asked(served.caller.lines, begin, middle), begin, middle)
                beside += Slice.of(asked(served.caller.lines, middle, end), middle, end)
            served.pause()
            self.controls[pace.shape] = min(1.0, beside.share_of(quiet))
        return self.controls[pace.shape]

    def end(self) -> None:
        self.child.end()


async def measured(served: Served, attack: Attack, attackers: Attackers) -> Figures:
    """The attack's figures, of its last try where there were several."""
    began = time.monotonic()
    await asyncio.to_thread(attackers.do, "make", name=attack.name)
    tries = [await _once(served, attack, attackers)]
    while tries[0].late and undecided(tries, TRIES) and served.alive:
        tries.append(await _once(served, attack, attackers))
    figures = tries[0] if len(tries) == 1 else decided(tries)
    figures.took = time.monotonic() - began
    return figures


async def _once(served: Served, attack: Attack, attackers: Attackers) -> Figures:
    figures = Figures(attack.name)
    served.resume()
    quiet = time.monotonic()
    await _quiet(served, quiet)
    held = await asyncio.to_thread(_held, served)
    process.forget_peak(served.pid)
    before, used = time.monotonic(), _used(served, attackers)
    with _Watch(served) as watch:
        told = await asyncio.to_thread(
            functools.partial(
                attackers.do,
                "attack",
                within=attack.limit + 60,
                name=attack.name,
                target=served.told(),
                window=WINDOW,
            )
        )
        begin, end = told["begin"], told["end"]
        figures.window = end - begin
        seconds = time.monotonic() - before
        figures.cores = {who: (now - used[who]) / seconds for who, now in _used(served, attackers).items()}
        await asyncio.to_thread(_after, served, figures, held, end)
    over = time.monotonic()
    figures.peak = (process.peak(served.pid) - served.idle) / MIB if served.alive else math.inf
    figures.gauge = watch.gauge / MIB
    await asyncio.to_thread(_wait_for_probe, served, over)
    _remember_quiet(served, quiet, begin)
    traffic = Traffic(*told["traffic"])
    figures.traffic = str(Traffic(traffic.connections / figures.window, traffic.sent / figures.window))
    if served.alive and not figures.problems:
        pace = traffic.at_pace_of(figures.window)
        figures.control = await asyncio.to_thread(attackers.control, served, pace)
    _measure_throughput(served, figures, begin, end)
    _measure_health(served, attack, figures, begin, over)
    figures.judge_time()
    if figures.peak > (INFLIGHT + WORKING) / MIB or watch.gauge > INFLIGHT:
        figures.problems["c"] = f"memory beyond the idle server reached {figures.peak:.0f} MiB"
        if watch.ended_it:
            figures.problems["c"] = f"more than {CEILING // MIB} MiB; ended by the harness"
    if not served.alive and not watch.ended_it:
        figures.problems["d"] = f"the server ended with status {served.server.returncode}"
    answers = dict(told["answers"])
    figures.answers = ", ".join(f"{count} x {status or 'none'}" for status, count in answers.items())
    if wrong := sorted(set(answers) - attack.answers):
        figures.problems["e"] = f"answers {wrong}"
    if told["complaints"]:
        figures.problems["e"] = "; ".join(dict.fromkeys(told["complaints"]))
    return figures


async def _quiet(served: Served, began: float) -> None:
    """Long enough to tell the well-behaved caller's pace, also on a slow machine."""
    while (now := time.monotonic()) < began + QUIET or (
        now < began + 10 * QUIET and len(asked(served.caller.lines, began, now)) < KINDS
    ):
        await asyncio.sleep(0.05)


def _held(served: Served) -> tuple[int, int]:
    return process.files(served.pid), served.tasks()


def _used(served: Served, attackers: Attackers) -> dict[str, float]:
    """Processor seconds so far, by who used them."""
    known = {"server": served.pid, "attacker": attackers.child.pid, "caller": served.caller.pid}
    used = {who: process.seconds(pid) for who, pid in known.items()}
    ours = process.seconds(os.getpid())
    return used | {"others": process.machine_seconds() - ours}


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
        figures.charged = served.charged()
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


def _measure_health(served: Served, attack: Attack, figures: Figures, begin: float, over: float) -> None:
    entries = asked(served.probe.lines, begin, over)
    still = [entry for entry in entries if entry.kind == "still"]
    health = [entry for entry in entries if entry.kind == ("kept" if attack.kept else "new")]
    times = [LONGEST if not entry.good else entry.seconds for entry in health]
    if not times:
        figures.slow = math.inf
        return
    figures.p50 = statistics.median(times) * 1000
    figures.p99 = sorted(times)[min(len(times) - 1, int(0.99 * len(times)))] * 1000
    figures.worst = max(times) * 1000
    left = max(PROCESSORS - figures.cores["others"], 0.1)
    machine = HEALTH * (PROCESSORS / left - 1)
    for entry, seconds in zip(health, times, strict=True):
        excuse = 0.0
        if seconds > HEALTH:
            meanwhile = [other.seconds for other in still if other.ended > entry.began and other.began < entry.ended]
            excuse = min(max([*meanwhile, *served.quiet_health, machine]), HEALTH)
            figures.excused = max(figures.excused, excuse * 1000)
        figures.slow = max(figures.slow, 1000 * (seconds - excuse))


def _remember_quiet(served: Served, begin: float, end: float) -> None:
    entries = [entry for entry in asked(served.caller.lines, begin, end) if entry.began >= begin]
    served.quiet.append(Slice.of(entries, begin, end))
    probed = [entry.seconds for entry in asked(served.probe.lines, begin, end) if entry.kind == "new"]
    served.quiet_health.append(max(probed, default=0.0))


def _measure_throughput(served: Served, figures: Figures, begin: float, end: float) -> None:
    quiet = sum(served.quiet, Slice())
    during = asked(served.caller.lines, begin, end)
    figures.before = quiet.per_second
    under = Slice.of(during, begin, end)
    figures.kept = under.share_of(quiet) / max(figures.control, 0.01)
    figures.slower = under.slower_than(quiet)
    figures.slowest = max((entry.seconds for entry in during), default=end - begin)
    figures.failed = sum(not entry.good for entry in during)
    if not any(quiet.counts.values()):
        figures.problems["d"] = "the well-behaved caller was not served before"
