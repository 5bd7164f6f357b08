"""How many requests an hour the server bears before some of them have to wait, learned from the hours when they did."""

import numpy as np
from numpy.typing import NDArray

_CROWDED = 0.05
"""Share of an hour's minutes with a queue from which on it counts as crowded."""
_LEAST = 2
"""Crowded hours from which on something is known; one is chance."""


def bearable(requests: NDArray[np.floating], crowded: NDArray[np.floating]) -> float | None:
    """The number of requests an hour that best parts crowded hours, at or above it, from the others below it.

    requests and crowded are (T,) as in `Hours`; hours in which either is NaN tell nothing. None where no number makes
    fewer mistakes than to call no hour crowded.
    """
    telling = np.isfinite(requests) & np.isfinite(crowded)
    counts, full = requests[telling], crowded[telling] >= _CROWDED
    best, mistakes = None, int(full.sum())
    for limit in np.unique(counts[full])[::-1]:
        above = counts >= limit
        wrong = int((above != full).sum())
        if wrong < mistakes and (above & full).sum() >= _LEAST:
            best, mistakes = float(limit), wrong
    return best
