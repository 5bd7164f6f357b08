"""The repository's kernel tests, with Triton and plain torch on the device."""

import os
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from gpu.device import INTERPRETED
from gpu.sizes import Sizes
from gpu.table import Table

ROOT = Path(__file__).resolve().parents[2]


class Outcomes:
    """A plugin of pytest that counts tests by outcome and keeps the names of those that fail."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.counts[report.outcome] += 1
            self.failed += [report.nodeid] if report.failed else []


def run(sizes: Sizes) -> Table:
    """Raises AssertionError with the names of tests that fail."""
    os.chdir(ROOT)
    outcomes, started = Outcomes(), time.perf_counter()
    # Every shape is compiled anew, which the cores of a GPU's host can do side by side.
    several = [] if INTERPRETED or find_spec("xdist") is None else ["-n", str(min(8, os.cpu_count() or 1))]
    status = pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", *several, *sizes.kernel_tests], [outcomes])
    assert not outcomes.failed, f"{len(outcomes.failed)} tests fail: {', '.join(outcomes.failed)}"
    assert status == pytest.ExitCode.OK, f"pytest ends with {status!r}"
    counts = outcomes.counts
    row = [str(counts["passed"]), str(counts["skipped"]), f"{time.perf_counter() - started:.0f}"]
    return Table(("passed", "skipped", "seconds"), [row], f"`pytest {' '.join(sizes.kernel_tests)}`.")
