"""Requests that have come and are not written down yet, by the minute."""

from collections.abc import Mapping
from dataclasses import dataclass

MINUTE = 60
_MOST = 1440
"""Minutes kept while they cannot be written, as on a full disk: a day. Then the oldest is forgotten."""


@dataclass
class Minute:
    """What came in a minute that was watched. crowded: whether requests had to wait; None where that tells nothing."""

    requests: int = 0
    crowded: bool | None = None


class Counter:
    """Used on the event loop. Minutes are counted from the Unix epoch."""

    def __init__(self) -> None:
        self._minutes: dict[int, Minute] = {}

    def add(self, at: float) -> None:
        """A request came at `at`, in Unix time."""
        self._minute(at).requests += 1

    def watch(self, at: float, crowded: bool | None) -> None:
        """The server runs at this moment: without a request, its minute is a zero and no gap."""
        minute = self._minute(at)
        minute.crowded = crowded if minute.crowded is None else minute.crowded or crowded

    def take(self) -> dict[int, Minute]:
        """All that was counted since it was last taken."""
        taken, self._minutes = self._minutes, {}
        return taken

    def put_back(self, minutes: Mapping[int, Minute]) -> None:
        """What was taken and could not be written."""
        for number, minute in minutes.items():
            self.watch(number * MINUTE, minute.crowded)
            self._minutes[number].requests += minute.requests

    def _minute(self, at: float) -> Minute:
        number = int(at // MINUTE)
        if (minute := self._minutes.get(number)) is None:
            minute = self._minutes[number] = Minute()
            if len(self._minutes) > _MOST:
                del self._minutes[min(self._minutes)]
        return minute
