"""Servers on loopback and names from a stub of the resolver, to fetch from."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial

import pytest

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.addresses import AddressPolicy
from covervlm.server.media.fetch import Fetcher, FetchLimits

LOOPBACK = AddressPolicy(networks=["127.0.0.0/8"])
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"


class Names:
    """A resolver that knows what the test says; a name's answers change from call to call where there are several."""

    def __init__(self, **answers):
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked = Counter()

    async def __call__(self, host, port, owner):
        self.asked[host] += 1
        if host not in self.answers:
            raise OSError("no such name")
        answers = self.answers[host]
        return answers[min(self.asked[host], len(answers)) - 1]


class Server:
    """Answers every connection with what `answer` returns for the request's path, and keeps the requests' heads."""

    def __init__(self, answer):
        self.answer = answer
        self.heads = []

    async def handle(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            answer = self.answer(head.split(" ")[1])
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer, host="127.0.0.1", port=0, tls=None):
    """A server on a loopback address, and its port."""
    server = Server(answer if callable(answer) else lambda path: answer)
    listener = await asyncio.start_server(server.handle, host, port, ssl=tls)
    try:
        yield server, listener.sockets[0].getsockname()[1]
    finally:
        listener.close()


@asynccontextmanager
async def fetching(policy=LOOPBACK, limits=None, **options):
    fetcher = Fetcher(policy, limits or FetchLimits(), **options)
    try:
        yield partial(fetcher, owner="me", hold=lambda size: None)
    finally:
        await fetcher.aclose()


async def refusal(fetcher, url, max_bytes=1000):
    with pytest.raises(InvalidRequest) as refused:
        await fetcher(url, max_bytes)
    return refused.value


def redirect(location, status=302):
    return f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
