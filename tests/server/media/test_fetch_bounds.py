"""A fetch is bounded in bytes and in time, and leaves nothing behind."""

import asyncio
import gc
import weakref
from functools import partial
from types import SimpleNamespace

import pytest

from covervlm.server.core.caller import Callers
from covervlm.server.core.errors import EngineOverloaded
from covervlm.server.core.pace import AT_ONCE, FETCHED_BYTES, FETCHES
from covervlm.server.media import fetch
from covervlm.server.media.fetch import Fetcher, FetchLimits
from tests.server.media.remote import LOOPBACK, OK, fetching, redirect, refusal, serving


async def test_a_declared_length_over_the_limit_ends_the_fetch_at_once():
    async def forever(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n")
        await asyncio.Event().wait()

    async with serving(lambda path: forever) as (_, port), fetching() as fetch:
        error = await refusal(fetch, f"http://127.0.0.1:{port}/", max_bytes=10)
    assert (error.code, "more than 10 bytes" in str(error)) == ("image_too_large", True)


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_undeclared_length_is_counted_while_it_streams(chunked):
    sent = 0

    async def endless(writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n" + b"Transfer-Encoding: chunked\r\n" * chunked + b"\r\n")
        while True:
            writer.write((b"400\r\n" if chunked else b"") + bytes(1024) + (b"\r\n" if chunked else b""))
            await writer.drain()
            sent += 1024

    async with serving(lambda path: endless) as (_, port), fetching() as fetch:
        error = await refusal(fetch, f"http://127.0.0.1:{port}/", max_bytes=100_000)
    assert error.code == "image_too_large"
    assert sent < 50_000_000  # far less than it would have gone on to send; sockets buffer some of it


@pytest.mark.parametrize(("size", "fits"), [(10, True), (11, False)])
async def test_the_limit_itself_is_allowed(size, fits):
    async with serving(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(size)) as (_, port), fetching() as fetch:
        if fits:
            assert await fetch(f"http://127.0.0.1:{port}/", 10) == bytes(10)
        else:
            assert (await refusal(fetch, f"http://127.0.0.1:{port}/", 10)).code == "image_too_large"


async def test_a_compressed_body_is_refused_unread():
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nxxxxx"
    async with serving(answer) as (_, port), fetching() as fetch:
        assert "compressed" in str(await refusal(fetch, f"http://127.0.0.1:{port}/"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
    ],
)
async def test_what_is_no_http_answer_is_refused(answer):
    async with serving(answer) as (_, port), fetching() as fetch:
        assert "could not be fetched" in str(await refusal(fetch, f"http://127.0.0.1:{port}/"))


async def silent(writer):
    await asyncio.Event().wait()


async def drip(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("answer", "limits"),
    [
        (silent, FetchLimits(total_timeout=60, read_timeout=0.2)),
        (silent, FetchLimits(total_timeout=0.2, read_timeout=60)),
        (drip, FetchLimits(total_timeout=0.3, read_timeout=60)),
    ],
)
async def test_a_fetch_ends_in_time_whether_nothing_comes_or_too_little(answer, limits):
    async with serving(lambda path: answer) as (_, port), fetching(limits=limits) as fetch:
        async with asyncio.timeout(20):
            assert "too long" in str(await refusal(fetch, f"http://127.0.0.1:{port}/", max_bytes=10**9))


async def test_what_was_fetched_goes_with_the_error_of_its_task():
    class Held:
        def __call__(self, size: int) -> None: ...

    async with serving(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(100_000)) as (_, port), fetching() as fetch:
        held = Held()
        seen = weakref.ref(held)
        gc.disable()  # which would find a circle, some time later
        try:
            task = asyncio.create_task(fetch(f"http://127.0.0.1:{port}/", 50_000, hold=held))
            del held
            await asyncio.wait([task])
            assert task.exception() is not None
            del task
            await asyncio.sleep(0)
            assert seen() is None
        finally:
            gc.enable()


async def test_a_resolver_that_hangs_is_given_up():
    async def hangs(host, port, owner):
        await asyncio.Event().wait()

    async with fetching(limits=FetchLimits(total_timeout=0.2), resolve=hangs) as fetch, asyncio.timeout(20):
        assert "too long" in str(await refusal(fetch, "http://images.test/"))


async def test_no_connection_outlives_its_fetch():
    """Else one that was made for a host would serve another at the same address, past TLS's check of the name."""
    async with serving(OK) as (_, port), fetching() as fetch:
        await fetch(f"http://127.0.0.1:{port}/", 1000)
        assert fetch.func._transport._pool.connections == []


async def test_bytes_are_told_of_as_they_come_and_no_more_are_read_once_there_is_no_room():
    sent, told = 0, []

    async def endless(writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    def hold(size):
        told.append(size)
        if sum(told) > 200_000:
            raise EngineOverloaded("no room", retry_after=1)

    fetcher = Fetcher(LOOPBACK, FetchLimits())
    try:
        async with serving(lambda path: endless) as (_, port):
            with pytest.raises(EngineOverloaded):
                await fetcher(f"http://127.0.0.1:{port}/", 10**9, owner="me", hold=hold)
    finally:
        await fetcher.aclose()
    assert 200_000 < sum(told) < 10**6
    assert sent < 10**8


@pytest.fixture
def waited(monkeypatch):
    """The seconds that a fetch waits for, which then pass at once."""
    seconds = []

    async def sleep(delay):
        seconds.append(delay)

    monkeypatch.setattr(fetch, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    return seconds


async def test_every_redirect_and_all_bytes_go_at_a_keys_pace(waited):
    callers, part = Callers(clock=lambda: 100.0), int(FETCHED_BYTES * AT_ONCE)
    answers = {"/again": redirect("/again"), "/large": b"HTTP/1.1 200 OK\r\n\r\n" + bytes(part + 2**20)}
    async with serving(answers.get) as (_, port), fetching() as get:
        url = f"http://127.0.0.1:{port}"
        with callers.request("greedy") as greedy, callers.request("other") as other:
            assert await get(f"{url}/large", 2 * part, pace=greedy.pace) == bytes(part + 2**20)
            assert sum(map(bool, waited)) > 0
            assert max(waited) == pytest.approx(2**20 / FETCHED_BYTES)
            waited.clear()
            free = int(FETCHES * AT_ONCE) - 1
            while len(waited) < free + 4:
                await refusal(partial(get, pace=greedy.pace), f"{url}/again")
            assert not any(waited[:free])
            assert all(waited[free + 1 :])
            waited.clear()
            await refusal(partial(get, pace=other.pace), f"{url}/again")
            assert waited == [0.0] * 4


async def test_waiting_for_the_pace_takes_nothing_from_the_time_limit(waited):
    pace = SimpleNamespace(fetch=lambda: 3.0, fetched=lambda size: 4.0)
    async with asyncio.timeout(60) as limit:
        end = limit.when()
        paced = fetch._Paced(pace)
        paced.limit = limit
        await paced.connects()
        await paced.has_read(1)
        assert limit.when() - end == pytest.approx(7)
    assert waited == [3.0, 4.0]
