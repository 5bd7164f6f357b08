"""Answers that wait to be compared: few, small together, not for long, and gone as soon as a request needs the room."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from PIL.Image import Image

from covervlm.server.core.caller import InFlight
from covervlm.server.core.fairness import FairQueue, has_room
from covervlm.server.core.generation import GenerationRequest, ImagePart, VideoPart

OWNER: Final = "shadow"
"""Whose the memory is in the accounts of requests in flight; no key's hash is a word."""
OLDEST = 600.0
"""Seconds after which an answer is not compared any more: pictures of callers are not kept for longer."""
_BYTES_PER_PIXEL = 4
_BYTES_PER_TOKEN = 8


@dataclass(frozen=True, eq=False)
class Shadow:
    """An answer as it was served, and the request that it answers."""

    request: GenerationRequest
    answer: tuple[int, ...]
    since: float = 0.0

    @property
    def nbytes(self) -> int:
        """Of the decoded images, the texts and the tokens."""
        images = [image for part in self.request.images for image in _images(part)]
        pixels = sum(image.width * image.height for image in images)
        return _BYTES_PER_PIXEL * pixels + 4 * len(self.request.text) + _BYTES_PER_TOKEN * len(self.answer)


Dropped = Callable[[str, int], None]
"""Told why shadows were dropped, and how many."""


class WaitingShadows:
    """Bounded by number and bytes; owners take turns, and one leaves room to others. For one event loop.

    Its memory is counted among that of requests in flight, of which it takes nothing beyond the half.
    """

    def __init__(
        self,
        memory: InFlight,
        dropped: Dropped,
        *,
        most: int,
        most_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = memory
        self._dropped = dropped
        self._most = most
        self._most_bytes = most_bytes
        self._clock = clock
        self._queue: FairQueue[Shadow] = FairQueue()
        self._some = asyncio.Event()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, shadow: Shadow) -> None:
        """Keep an answer until its turn, or drop it where there is no room."""
        self._drop_old()
        owner, size = shadow.request.caller.owner, shadow.nbytes
        if not has_room(mine=self._queue.count(owner), total=len(self._queue), limit=self._most):
            self._dropped("full", 1)
        elif self.bytes + size > self._most_bytes or self._memory.bytes + size > self._memory.limit // 2:
            self._dropped("memory", 1)
        else:
            self.bytes += size
            self._memory.take(OWNER, size)
            self._queue.push(owner, replace(shadow, since=self._clock()))
            self._some.set()
            asyncio.get_running_loop().call_later(OLDEST, self._drop_old)

    async def pop(self) -> Shadow:
        """The next one, once there is one; its memory stays counted until `release`."""
        while True:
            self._drop_old()
            if self._queue:
                return self._queue.pop()
            self._some.clear()
            await self._some.wait()

    def seconds_left(self, shadow: Shadow) -> float:
        """How long this one may still be kept."""
        return shadow.since + OLDEST - self._clock()

    def release(self, shadow: Shadow) -> None:
        """Give back the memory of one that was popped."""
        size = shadow.nbytes
        self.bytes -= size
        self._memory.give(OWNER, size)

    def drop(self, why: str) -> bool:
        """Drop all that wait; whether there were any."""
        return self._drop(why, lambda shadow: True)

    def _drop_old(self) -> None:
        self._drop("expired", lambda shadow: self.seconds_left(shadow) <= 0)

    def _drop(self, why: str, unwanted: Callable[[Shadow], bool]) -> bool:
        found: list[Shadow] = []

        def drop(shadow: Shadow) -> bool:
            if unwanted(shadow):
                found.append(shadow)
                return True
            return False

        self._queue.discard(drop)
        for shadow in found:
            self.release(shadow)
        if found:
            self._dropped(why, len(found))
        return bool(found)


def _images(part: ImagePart | VideoPart) -> tuple[Image, ...]:
    return (part.image,) if isinstance(part, ImagePart) else part.frames
