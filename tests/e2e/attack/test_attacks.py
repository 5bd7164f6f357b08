"""Whatever one caller sends, everybody else notices little of it, and nothing of it stays."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.attack.attacks import TABLE
from tests.e2e.attack.figures import Figures
from tests.e2e.attack.measure import measured
from tests.e2e.attack.report import Report
from tests.e2e.attack.served import Served

pytestmark = [pytest.mark.attack, pytest.mark.timeout(600)]


class Servers:
    """The server that attacks share until one of them has damaged it, and those that have one for themselves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._shared: Served | None = None

    def new(self, *options: str, prepare: object = None, wrapper: object = None) -> Served:
        self._started += 1
        folder = self._folder / f"data-{self._started}"
        folder.mkdir(mode=0o755)
        if callable(prepare):
            prepare(folder)
        return Served(folder, *options, wrapper=wrapper(folder) if callable(wrapper) else ())

    def shared(self, options: Sequence[str]) -> Served:
        if self._shared is None or not self._shared.alive or self._shared.options != tuple(options):
            self.drop()
            self._shared = self.new(*options)
        return self._shared

    def drop(self) -> None:
        if self._shared is not None:
            self._shared.stop()
            self._shared = None


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("attack"))
    yield servers
    servers.drop()


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """Written to results/attack.md, and printed when all have been tried."""
    report = Report(Path(request.config.rootpath) / "results" / "attack.md")
    yield report
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{report.text()}")


@pytest.mark.parametrize("name", sorted(TABLE, key=lambda name: tuple(TABLE[name].options)))
async def test_everybody_else_goes_on_during(name: str, servers: Servers, report: Report) -> None:
    attack = TABLE[name]
    if reason := attack.needs():
        pytest.skip(reason)
    if attack.shares_server:
        served = servers.shared(attack.options)
    else:
        served = servers.new(*attack.options, prepare=attack.prepare, wrapper=attack.wrapper)
    figures = Figures(name, worst=math.nan, problems={"d": "the harness itself failed"})
    try:
        figures = await measured(served, attack)
    finally:
        report.add(figures)
        if not attack.shares_server:
            served.stop()
        elif figures.problems:
            servers.drop()
    assert not figures.problems
