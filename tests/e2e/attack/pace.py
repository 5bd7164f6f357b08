"""How the well-behaved caller gets on, of which a second tells enough: parts of requests count, each kind for itself.

Quiet moments and attacks take turns: what else runs on the machine slows both alike, and their ratio tells the attack.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from tests.e2e.attack.figures import Asked


@dataclass
class Slice:
    """What was asked within a stretch of time: for each kind, how many requests (with parts) and how many seconds."""

    seconds: float = 0.0
    counts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def of(cls, entries: list[Asked], begin: float, end: float) -> "Slice":
        part = cls(end - begin)
        for entry in entries:
            inside = min(entry.ended, end) - max(entry.began, begin)
            if inside > 0:
                part.counts[entry.kind] += entry.good * inside / entry.seconds
                part.spent[entry.kind] += inside
        return part

    def __add__(self, other: "Slice") -> "Slice":
        total = Slice(self.seconds + other.seconds)
        for part in (self, other):
            for kind, count in part.counts.items():
                total.counts[kind] += count
                total.spent[kind] += part.spent[kind]
        return total

    @property
    def per_second(self) -> float:
        return sum(self.counts.values()) / self.seconds if self.seconds else 0.0

    def share_of(self, quiet: "Slice") -> float:
        """What part of the quiet moments' throughput this is; a request is worth the time that it takes when quiet."""
        worth = {kind: quiet.spent[kind] / count for kind, count in quiet.counts.items() if count}
        usual = sum(worth.values()) / max(1, len(worth))

        def pace(part: Slice) -> float:
            return sum(count * worth.get(kind, usual) for kind, count in part.counts.items()) / part.seconds

        return pace(self) / pace(quiet) if worth else 0.0

    def slower_than(self, quiet: "Slice") -> dict[str, float]:
        """By kind, how many times as long a request takes; infinity for one that never ends."""
        return {
            kind: self.spent[kind] / self.counts[kind] * quiet.counts[kind] / spent if self.counts[kind] else math.inf
            for kind, spent in quiet.spent.items()
            if self.spent[kind]
        }
