"""What is measured of one attack, and what the probe and the well-behaved caller tell of it."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

HEALTH = 0.25
SHARE = 0.5


@dataclass(frozen=True)
class Asked:
    """One question of the probe or the caller."""

    kind: str
    began: float
    seconds: float
    good: bool

    @property
    def ended(self) -> float:
        return self.began + self.seconds


@dataclass
class Figures:
    """What was measured; times in milliseconds, memory in MiB beyond the idle server's, rates in requests a second.

    slow: the slowest /health, less what excuses it. kept: of the throughput beside as much traffic to nobody, which
    was `control` of the quiet moments' throughput. slower: how many times as long each kind of request took. cores: of
    the processors, those that server, attacker and well-behaved caller used, and all else. tries: of all tries where
    there were several, slow and kept. took: seconds for all of it but the start of a server.
    """

    name: str
    window: float = 0.0
    took: float = 0.0
    p50: float = math.nan
    p99: float = math.nan
    worst: float = math.nan
    slow: float = 0.0
    excused: float = 0.0
    before: float = math.nan
    control: float = 1.0
    kept: float = math.nan
    slower: dict[str, float] = field(default_factory=dict)
    failed: int = 0
    slowest: float = 0.0
    peak: float = math.nan
    gauge: float = math.nan
    left: float = math.nan
    charged: float = math.nan
    back: float = math.nan
    threads: int = 0
    files: int = 0
    tasks: int = 0
    cores: dict[str, float] = field(default_factory=dict)
    traffic: str = ""
    tries: list[tuple[float, float]] = field(default_factory=list)
    answers: str = ""
    problems: dict[str, str] = field(default_factory=dict)
    """By letter, a to d; `e` is what came back."""

    def judge_time(self) -> None:
        """(a) and (b), of which nothing is known where the server ended."""
        if self.slow > 1000 * HEALTH:
            self.problems["a"] = f"/health took {self.slow:.0f} ms"
        if self.kept < SHARE:
            failed = f", {self.failed} failed" if self.failed else ""
            slower = ", ".join(f"{kind} {times:.1f}" for kind, times in self.slower.items())
            self.problems["b"] = f"{self.kept:.0%} of the throughput{failed} (times as long: {slower})"

    @property
    def late(self) -> bool:
        """Whether it fails in time alone."""
        return bool(self.problems) and set(self.problems) <= {"a", "b"}


def undecided(tries: Sequence[Figures], most: int) -> bool:
    """Whether another try, of `most` at most, can change what the medians will be judged to be."""
    missed = Counter(letter for each in tries for letter in each.problems)
    return len(tries) < most and max(missed.values(), default=0) <= most // 2


def decided(tries: Sequence[Figures]) -> Figures:
    """The last try, judged in time by the medians of all, and in everything else by each."""
    last = tries[-1]
    last.tries = [(each.slow, each.kept) for each in tries]
    last.problems = {
        letter: text for each in tries for letter, text in each.problems.items() if letter not in ("a", "b")
    }
    last.slow = statistics.median(each.slow for each in tries)
    last.kept = statistics.median(each.kept for each in tries)
    last.judge_time()
    return last


def asked(lines: list[str], begin: float, end: float) -> list[Asked]:
    """What had not ended before `begin` and began before `end`; lines are in the order in which they ended, nearly."""
    found: list[Asked] = []
    for line in reversed(list(lines)):
        words = line.split()
        if len(words) == 4:
            entry = Asked(words[0], float(words[1]), float(words[2]), words[3] in ("1", "200"))
            if entry.ended < begin - 1:
                break
            if entry.ended >= begin and entry.began < end:
                found.append(entry)
    return found[::-1]
