"""Sends an attack's requests over connections of their own, and remembers what came back."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.attack.target import ATTACKER, Target
from tests.e2e.attack.traffic import Traffic

JSON = "application/json"


@dataclass(frozen=True)
class Answer:
    """status 0: the connection ended without an answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


class Attacker:
    """One attack's hands: counts the statuses of its answers, and takes complaints about what no figure shows."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.traffic = Traffic()
        self.answers: Counter[int] = Counter()
        self.complaints: list[str] = []
        self._open: set[asyncio.StreamWriter] = set()

    def complain(self, text: str) -> None:
        self.complaints.append(text[:300])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that ends with the attack at the latest."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target.port, limit=2**26)
        self.traffic.connections += 1
        self._open.add(writer)
        return reader, writer

    async def post(self, path: str, body: object, **options: Any) -> Answer:
        return await self.request("POST", path, body, **options)

    async def request(
        self,
        method: str,
        path: str,
        body: object = b"",
        *,
        key: str | None = ATTACKER,
        headers: dict[str, str] | None = None,
        counted: bool = True,
    ) -> Answer:
        """Send one request and read its answer; bodies that are no bytes are sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Host": "127.0.0.1", "Connection": "close", "Content-Type": JSON, "Content-Length": str(len(data))}
        if key is not None:
            given["Authorization"] = f"Bearer {key}"
        given |= headers or {}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        answer = await self.exchange(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode(), data)
        if counted:
            self.answers[answer.status] += 1
        return answer

    async def exchange(self, *pieces: bytes) -> Answer:
        """Send bytes, and read until the server ends the connection."""
        try:
            reader, writer = await self.connect()
        except OSError:
            return Answer(0)
        try:
            sending = asyncio.ensure_future(self._send(writer, pieces))
            try:
                with contextlib.suppress(OSError):
                    return parsed(await reader.read())
                return Answer(0)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        finally:
            self.drop(writer)

    async def _send(self, writer: asyncio.StreamWriter, pieces: Iterable[bytes]) -> None:
        with contextlib.suppress(OSError):  # the server may have had enough before all is sent
            for piece in pieces:
                for start in range(0, len(piece), 2**20):
                    writer.write(piece[start : start + 2**20])
                    await writer.drain()
                    self.traffic.sent += min(2**20, len(piece) - start)

    def drop(self, writer: asyncio.StreamWriter) -> None:
        self._open.discard(writer)
        writer.transport.abort()

    def leave(self) -> None:
        """End every connection that is still open."""
        for writer in list(self._open):
            self.drop(writer)


def parsed(data: bytes) -> Answer:
    """The last answer on a connection, interim ones left out."""
    head, gap, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if not gap or len(words) < 2 or not words[1].isdigit():
        return Answer(0)
    status = int(words[1])
    if status < 200:
        return parsed(body)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    return Answer(status, headers, body)


def _joined(chunks: bytes) -> bytes:
    pieces = []
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        try:
            length = int(size, 16)
        except ValueError:
            break
        pieces.append(rest[:length])
        chunks = rest[length + 2 :]
    return b"".join(pieces)
