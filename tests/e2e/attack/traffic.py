"""What an attacker puts on the wire, and the same once more to nobody: the control of the measurement.

The attacker shares the machine with the server, which an attacker has no right to in reality. `replay` opens as many
connections a second and sends as many bytes over them, to a sink that discards them, so that what this costs
the well-behaved caller can be told from what the server's work for the attacker costs it.
"""

import asyncio
import contextlib
import math
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass

from tests.e2e.attack.lifeline import end_with_parent

STEP = 4
"""Paces within this factor of one another have one control, at the lower end."""


@dataclass
class Traffic:
    """Connections opened and bytes sent."""

    connections: float = 0
    sent: float = 0

    def at_pace_of(self, seconds: float) -> "Traffic":
        """A second's worth, rounded down to a power of STEP: a control that costs too little is the stricter one."""

        def rounded(value: float) -> float:
            return float(STEP ** math.floor(math.log(value, STEP))) if value >= 1 else 0.0

        return Traffic(rounded(self.connections / seconds), rounded(self.sent / 2**20 / seconds) * 2**20)

    @property
    def shape(self) -> tuple[float, float]:
        return self.connections, self.sent

    def __str__(self) -> str:
        return f"{self.connections:,.0f} /s, {self.sent / 2**20:,.0f} MiB/s"


async def replay(pace: Traffic, port: int, seconds: float) -> None:
    """Connections at even distances that share the bytes; what cannot be sent in time is left out."""
    loop = asyncio.get_running_loop()
    begin, number = loop.time(), max(1, round(pace.connections * seconds))
    each = bytes(round(pace.sent * seconds / number))
    open_: set[asyncio.Task[None]] = set()

    async def send() -> None:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for start in range(0, len(each), 2**20):
                writer.write(each[start : start + 2**20])
                await writer.drain()
            writer.write_eof()
            await reader.read()
            writer.close()

    for each_number in range(number):
        if (left := begin + each_number * seconds / number - loop.time()) > 0:
            await asyncio.sleep(left)
        if loop.time() > begin + seconds:
            break
        task = asyncio.ensure_future(send())
        open_.add(task)
        task.add_done_callback(open_.discard)
        await asyncio.sleep(0)
    if open_ and (left := begin + seconds - loop.time()) > 0:
        await asyncio.wait(open_, timeout=left)
    for task in open_:
        task.cancel()
    await asyncio.gather(*open_, return_exceptions=True)
    if (left := begin + seconds - loop.time()) > 0:
        await asyncio.sleep(left)


def sink() -> tuple[subprocess.Popen[str], int]:
    """A process that takes all bytes and answers a few at their end; in the session of the one that starts it."""
    process = subprocess.Popen([sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def _swallow(connection: socket.socket) -> None:
    room = bytearray(2**18)
    with contextlib.suppress(OSError), connection:
        while connection.recv_into(room):
            pass
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


if __name__ == "__main__":
    end_with_parent()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    while True:
        threading.Thread(target=_swallow, args=(listener.accept()[0],), daemon=True).start()
