"""What is measured of one attack, and what the probe and the well-behaved caller tell of it."""

import math
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
    """What was measured; times in milliseconds, memory in MiB beyond the idle server, rates in requests a second."""

    name: str
    window: float = 0.0
    p50: float = math.nan
    p99: float = math.nan
    worst: float = math.nan
    excused: float = 0.0
    before: float = math.nan
    kept: float = math.nan
    slowest: float = 0.0
    peak: float = math.nan
    gauge: float = math.nan
    left: float = math.nan
    charged: float = math.nan
    back: float = math.nan
    threads: int = 0
    files: int = 0
    tasks: int = 0
    others: float = 0.0
    earlier: list[tuple[float, float]] = field(default_factory=list)
    """Of tries that missed by little: the slowest /health, and what others kept of all tries until then."""
    answers: str = ""
    problems: dict[str, str] = field(default_factory=dict)
    """By letter, a to d; `e` is what came back."""

    @property
    def marginal(self) -> bool:
        """Whether it fails in time alone, and by little."""
        by_little = self.worst < 4000 * HEALTH and self.kept > SHARE / 2
        return bool(self.problems) and set(self.problems) <= {"a", "b"} and by_little


def asked(lines: list[str], begin: float, end: float) -> list[Asked]:
    """What had not ended before `begin` and began before `end`."""
    found = []
    for line in list(lines):
        words = line.split()
        if len(words) == 4:
            entry = Asked(words[0], float(words[1]), float(words[2]), words[3] in ("1", "200"))
            if entry.ended >= begin and entry.began < end:
                found.append(entry)
    return found
