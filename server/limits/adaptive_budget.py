"""A budget that shrinks under load: vision tokens cost prefill, so a long queue is served with fewer of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

LEVELS = 4
"""Steps from the ceiling down to the floor. Few, because caches hold selections by their budget."""


@dataclass(frozen=True)
class BudgetRange:
    """Vision tokens kept of each image: `ceiling` when nobody waits, never less than `floor`."""

    floor: int
    ceiling: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """FLOOR:CEILING, e.g. 64:192. Raises ValueError for anything else."""
        floor, _, ceiling = text.partition(":")
        if not (_is_count(floor) and _is_count(ceiling) and 0 < int(floor) < int(ceiling)):
            raise ValueError("should be FLOOR:CEILING with a floor of at least 1 below the ceiling, e.g. 64:192")
        return cls(int(floor), int(ceiling))


class AdaptiveBudget:
    """Turns the length of the queue into the budget of the next request.

    The queue is measured in steps: `full_queue` waiting requests are LEVELS steps, and each whole step takes the budget
    one level down, from the ceiling at level 0 to the floor at level LEVELS. Levels are spaced by equal ratios: 64:192
    serves 192, 146, 111, 84 or 64 tokens.

    The level has a hysteresis of one step, so that the budget does not oscillate: with q steps in the queue, any level
    from floor(q) to ceil(q) stays as it is, and a level outside that range moves to its nearer end. The budget thus
    falls as soon as the queue has grown by a whole step, stays while the queue varies within that step, and recovers
    once the step is gone. An empty queue is always served the ceiling, unless a peak is foreseen.

    A foreseen load of `excess` times what the ceiling bears takes the budget down before there is a queue, to the first
    level with `excess` squared times fewer tokens; the queue may take it further. Squared, because tower and decoding
    cost what they did: a third of the tokens was measured to make a request 1.5 times cheaper (docs/load.md).

    The only state is the queue's level; no clock is involved, so observing twice is the same as observing once.
    """

    def __init__(self, budgets: BudgetRange, *, full_queue: int, excess: Callable[[], float] = lambda: 0.0) -> None:
        """excess: asked for every budget; at 1 and below, and where nothing is foreseen, it changes nothing."""
        self._ratio = budgets.floor / budgets.ceiling
        self.levels = tuple(round(budgets.ceiling * self._ratio ** (level / LEVELS)) for level in range(LEVELS + 1))
        self._full_queue = max(1, full_queue)
        self._excess = excess
        self._level = 0

    def observe(self, waiting: int) -> int:
        """The budget of a request that finds `waiting` others in the queue."""
        whole, begun = self._steps(waiting)
        self._level = min(max(self._level, whole), whole + (begun > 0))
        return self.levels[max(self._level, self._foreseen())]

    def crowded(self, waiting: int) -> bool | None:
        """Whether so long a queue would take the budget down from the ceiling; None while it is lower by foresight.

        What the ceiling bears does not show then.
        """
        return None if self._foreseen() else self._steps(waiting)[0] > 0

    def _steps(self, waiting: int) -> tuple[int, int]:
        """Whole steps in the queue, and what is left beyond them."""
        return divmod(min(waiting, self._full_queue) * LEVELS, self._full_queue)

    def _foreseen(self) -> int:
        excess = self._excess()
        return 0 if excess <= 1 else min(LEVELS, math.ceil(-2 * LEVELS * math.log(excess) / math.log(self._ratio)))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
