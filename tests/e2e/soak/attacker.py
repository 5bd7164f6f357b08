"""A caller that attacks the server at the given port, with one attack after another, until its standard input ends."""

import asyncio
import contextlib
import random
import sys
from pathlib import Path

from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.attacking import only_spare_processors
from tests.e2e.attack.attacks import TABLE
from tests.e2e.attack.target import Target

NAMES = (
    "4 MiB of zeros for messages",
    "16 MiB of empty messages of users",
    "60 MiB of empty lists in metadata",
    "57 MiB of text with one character of four bytes",
    "4 MB of chat text: one word again and again",
    "two class names of 2 MB in a hundred templates",
    "112 choices of long answers",
    "a bad image beside seven large ones in a chat",
    "large pictures from eight callers at once",
    "2,048 pictures of one pixel",
    "a JPEG of thousands of scans on every route",
    "a PNG of 10 MiB of empty chunks on every route",
    "2 MiB of one-byte chunks without a key",
    "connections opened and ended at once, as fast as they go",
    "two dozen requests with large pictures, and nobody who waits",
    "a hundred long answers, and nobody who waits",
    "60 MiB of float64 embeddings, from four callers at once",
)
LONGEST = 5.0
"""Seconds, after which an attack is given up for the next one."""


async def attack(port: int) -> None:
    """Prints a line for each attack, with the statuses that came back."""
    rng = random.Random(0)
    while True:
        chosen = TABLE[rng.choice(NAMES)]
        attacker = Attacker(Target(port, pid=0, folder=Path()))
        with contextlib.suppress(OSError):  # TimeoutError among them
            async with asyncio.timeout(LONGEST):
                await chosen.send(attacker)
        attacker.leave()
        print(chosen.name, dict(attacker.answers), flush=True)


async def main() -> None:
    only_spare_processors()
    attacking = asyncio.ensure_future(attack(int(sys.argv[1])))
    await asyncio.to_thread(sys.stdin.read)
    attacking.cancel()


if __name__ == "__main__":
    asyncio.run(main())
