"""Whatever one caller sends, everybody else notices little of it, and nothing of it stays."""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.attack import attacked, process
from tests.e2e.attack.attacks import TABLE
from tests.e2e.attack.figures import Figures
from tests.e2e.attack.measure import Attackers, measured
from tests.e2e.attack.registry import Attack
from tests.e2e.attack.report import Report
from tests.e2e.attack.served import Served

pytestmark = [pytest.mark.attack, pytest.mark.timeout(600)]

REPORT = f"attack-{attacked.CHECKOUT.name}.md" if attacked.CHECKOUT else "attack.md"


class Servers:
    """The server that attacks share until one of them has damaged it, or the next attack needs another one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._shared: Served | None = None
        self._kind: object = None

    def get(self, attack: Attack) -> Served:
        if self._shared is None or not self._shared.alive or self._kind != attack.server:
            self.drop()
            self._started += 1
            folder = self._folder / f"data-{self._started}"
            folder.mkdir(mode=0o755)
            if attack.prepare:
                attack.prepare(folder)
            wrapper = attack.wrapper(folder) if attack.wrapper else ()
            self._shared, self._kind = Served(folder, *attack.options, wrapper=wrapper), attack.server
        return self._shared

    def drop(self) -> None:
        if self._shared is not None:
            self._shared.stop()
            self._shared = None


CALM, PATIENCE = 0.1, 30
"""Cores that other programs use of a calm machine, and seconds in which it may become calm."""


def calm() -> str:
    """Waits for other programs to end; what they used of the machine at last."""
    end = time.monotonic() + PATIENCE
    while True:
        began, used = time.monotonic(), process.machine_seconds()
        time.sleep(1)
        cores = (process.machine_seconds() - used) / (time.monotonic() - began)
        if cores < CALM or time.monotonic() > end:
            of = f"{cores:.2f} of {os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}"
            return f"Before the first attack, other programs used {of}." + (
                "" if cores < CALM else " **The machine is not calm: these figures say little.**"
            )


@pytest.fixture(scope="module")
def attackers() -> Iterator[Attackers]:
    attackers = Attackers()
    yield attackers
    attackers.end()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("attack"))
    yield servers
    servers.drop()


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """Written to results/, and printed when all have been tried."""
    report = Report(Path(request.config.rootpath) / "results" / REPORT, calm())
    yield report
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{report.text()}")


KINDS = list(dict.fromkeys(attack.server for attack in TABLE.values()))


@pytest.mark.parametrize("name", sorted(TABLE, key=lambda name: KINDS.index(TABLE[name].server)))
async def test_everybody_else_goes_on_during(name: str, report: Report, attackers: Attackers, servers: Servers) -> None:
    attack = TABLE[name]
    if reason := attack.needs():
        report.leave_out(name, reason)
        pytest.skip(reason)
    figures = Figures(name, worst=math.nan, problems={"d": "the harness itself failed"})
    try:
        figures = await measured(servers.get(attack), attack, attackers)
    finally:
        report.add(figures)
        if set(figures.problems) & {"c", "d"}:
            servers.drop()
    assert not figures.problems
