"""How much sooner pruned answers begin than unpruned ones, and how many more there are in a second, asked in turn."""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from covervlm.clients import Client, system, user
from covervlm.server.cli.asking import at_once, pruned
from covervlm.server.tuning.search import Cell
from covervlm.server.tuning.trial import Question

QUESTIONS = 16
"""Asked in each of the rounds, fewer where there are fewer."""


@dataclass(frozen=True)
class Pace:
    """Medians of seconds to the first text, and answers a second; of the unpruned model, then of the cell."""

    first: tuple[float, float]
    rate: tuple[float, float]

    def __str__(self) -> str:
        return (
            f"the first token after {self.first[1] * 1000:.0f} instead of {self.first[0] * 1000:.0f} ms, and "
            f"{self.rate[1]:.3g} instead of {self.rate[0]:.3g} answers a second"
        )


def pace(client: Client, questions: Sequence[Question], cell: Cell, number: int, **options: Any) -> Pace:
    """Four rounds, unpruned, pruned, pruned, unpruned, `number` requests at once. Raises as the client's calls do.

    A system message that differs each time keeps prompts that were read before from helping. Pictures have been seen,
    so that the vision tower, which pruning does not change, is left out on both sides.
    """
    asked, salt = questions[:QUESTIONS], itertools.count()
    firsts: tuple[list[float], list[float]] = ([], [])
    seconds = [0.0, 0.0]

    def ask(job: tuple[Question, Cell | None]) -> float:
        question, which = job
        messages = [system(f"{time.time_ns()}-{next(salt)}"), user(question.text, question.image)]
        start = time.perf_counter()
        first = 0.0
        for _ in client.stream_messages(messages, **pruned(which), **options, temperature=0.0):
            first = first or time.perf_counter() - start
        return first or time.perf_counter() - start

    for which in (None, cell, cell, None):
        start, side = time.perf_counter(), int(which is not None)
        firsts[side].extend(one.result() for _, one in at_once(ask, [(question, which) for question in asked], number))
        seconds[side] += time.perf_counter() - start
    unpruned, faster = (statistics.median(times) for times in firsts)
    return Pace((unpruned, faster), (2 * len(asked) / seconds[0], 2 * len(asked) / seconds[1]))
