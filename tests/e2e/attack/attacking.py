"""The attacker's process. It gets of the processors only what nobody else wants: an attacker has machines of its own.

A line of its input is a command in JSON, and brings a line of output: `make` builds what an attack sends, `attack`
sends it to a server and tells what came back, `replay` sends as much to nobody.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path

from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.attacks import TABLE
from tests.e2e.attack.lifeline import end_with_parent
from tests.e2e.attack.registry import Attack
from tests.e2e.attack.target import Target
from tests.e2e.attack.traffic import Traffic, replay, sink


def only_spare_processors() -> None:
    """The system shares processors out between sessions where it makes groups of them, else between processes."""
    os.nice(19)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")


async def attack(chosen: Attack, target: Target, window: float) -> dict[str, object]:
    """Until the window is over, or once; no longer than the attack's limit, nor than the server lives."""
    attacker = Attacker(target)
    begin = time.monotonic()

    async def send() -> None:
        await chosen.send(attacker)
        while not chosen.once and time.monotonic() < begin + window:
            await chosen.send(attacker)

    sending = asyncio.ensure_future(send())
    while not sending.done() and time.monotonic() < begin + chosen.limit and Path(f"/proc/{target.pid}/fd").exists():
        await asyncio.wait([sending], timeout=0.1)
    if not sending.done():
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    elif error := sending.exception():
        attacker.complain(f"the attack itself ended with {error!r}")
    elif (left := begin + window - time.monotonic()) > 0:
        await asyncio.sleep(left)
    end = time.monotonic()
    attacker.leave()
    return {
        "begin": begin,
        "end": end,
        "answers": sorted(attacker.answers.items()),
        "complaints": attacker.complaints,
        "traffic": attacker.traffic.shape,
    }


def main() -> None:
    end_with_parent()
    only_spare_processors()
    nobody, port = sink()
    try:
        for line in sys.stdin:
            command = json.loads(line)
            answer: dict[str, object] = {}
            match command["do"]:
                case "make":
                    TABLE[command["name"]].make()
                case "attack":
                    target = Target.of(command["target"])
                    answer = asyncio.run(attack(TABLE[command["name"]], target, command["window"]))
                case "replay":
                    asyncio.run(replay(Traffic(*command["pace"]), port, command["seconds"]))
            print(json.dumps(answer), flush=True)
    finally:
        nobody.kill()
        nobody.wait()


if __name__ == "__main__":
    main()
