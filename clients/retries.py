"""Which failures are worth another try, and after how long."""

import math
import random
from dataclasses import dataclass

from covervlm.clients.errors import APIConnectionError, APIError, APIStatusError, APITimeoutError

TEMPORARY = (408, 429, 502, 503, 504)
"""Statuses after which the same request may well be answered."""
REFUSED = (429, 503)
"""Those of them that say that nothing was done."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with jitter, and the server's own Retry-After where it sends one.

    retries: tries after the first. first_delay, longest_delay: seconds of the back-off, which doubles in between.
    longest_retry_after: seconds; who asks for more is not waited for.
    """

    retries: int = 4
    first_delay: float = 0.5
    longest_delay: float = 8.0
    longest_retry_after: float = 60.0

    def delay(self, attempt: int, error: APIError, *, repeatable: bool = True) -> float | None:
        """Seconds to wait after try number `attempt`, from 0, failed with `error`; None where that is final.

        A timeout is final: the server may still be at work on the request, and a second one would add to its load.
        So is a full quota, which only deleting something mends. What is not `repeatable` is sent again only where the
        server cannot have begun on it.
        """
        if attempt >= self.retries or isinstance(error, APITimeoutError):
            return None
        if not repeatable and not _refused_untouched(error):
            return None
        if isinstance(error, APIStatusError):
            if error.status not in TEMPORARY or error.code == "quota_exceeded":
                return None
            if error.retry_after is not None:
                return error.retry_after if error.retry_after <= self.longest_retry_after else None
        elif not isinstance(error, APIConnectionError):
            return None
        # Many clients that were refused together must not come back together.
        longest = min(self.longest_delay, self.first_delay * math.pow(2, min(attempt, 30)))
        return longest * random.uniform(0.5, 1)


def _refused_untouched(error: APIError) -> bool:
    """Whether the server turned the request away, or never saw it."""
    if isinstance(error, APIStatusError):
        return error.status in REFUSED
    return isinstance(error, APIConnectionError) and not error.reached
