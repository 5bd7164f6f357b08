"""Whatever bytes a client sends to the socket: no 5xx, no connection that stays, and the server goes on answering."""

import asyncio
import json
import logging
import random
import re
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from covervlm.server import connection, create_app
from covervlm.server.connection import Connection
from covervlm.server.settings import Settings
from tests.server.api.clip_app import wait_for
from tests.server.api.heartbeat import LONGEST, heartbeat
from tests.server.api.live import running
from tests.server.api.raw_requests import BODY, KINDS, LENGTH, chunked, get, post
from tests.server.api.scripted import ScriptedEngine

RECEIVE_TIMEOUT = 0.5
SECONDS = 60
AT_ONCE = 24
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@contextmanager
def fuzzed_server(tmp_path, **options):
    """A server that gives slow clients half a second, and its engine."""
    engine = ScriptedEngine()
    options = {"receive_timeout": RECEIVE_TIMEOUT} | options
    settings = Settings(data_dir=tmp_path, log_level="warning", remote_media=False, **options)
    with running(create_app(settings, engine), settings) as server:
        yield server, engine


async def exchange(address, pieces, *, gone=False):
    """Send the pieces as they come, and read until the server ends the connection; what it sent."""
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(*address)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            return b"" if gone else await reader.read()
        except OSError:  # the server may have had enough before all is sent
            return b""
        finally:
            writer.close()


def check_errors(answer):
    """The statuses of the answers on one connection; every error of the application is in OpenAI's schema."""
    for part in re.split(rb"(?=HTTP/1\.1 \d{3} )", answer):
        status = STATUS.match(part)
        head, _, body = part.partition(b"\r\n\r\n")
        if status and int(status[1]) >= 400 and b"application/json" in head and body:
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"}
    return [int(status) for status in STATUS.findall(answer)]


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


async def fuzz(server, connections):
    """Statuses by how often they came, over connections of every kind in turn."""
    statuses = Counter()
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number):
        rng = random.Random(number)
        kind = KINDS[number % len(KINDS)]
        data = kind(rng)
        cut = rng.randrange(len(data) + 1)
        async with slots:
            answer = await exchange(server.address, [data[:cut], data[cut:]], gone=rng.random() < 0.1)
        found = check_errors(answer)
        assert all(status < 500 for status in found), (kind.__name__, number, answer[:2000])
        statuses.update(found)

    await asyncio.gather(*(one(number) for number in range(connections)))
    return statuses


@pytest.mark.parametrize("connections", [200, pytest.param(6000, marks=pytest.mark.long)])
def test_no_bytes_on_the_socket_bring_a_5xx_a_hang_or_a_leak(tmp_path, connections, capsys):
    with fuzzed_server(tmp_path) as (server, engine):
        asyncio.run(fuzz(server, len(KINDS)))  # what is loaded when it is first needed
        wait_for(lambda: not server.server_state.connections)
        threads, files = threading.active_count(), open_files()
        engine.requests.clear()
        engine.released.clear()
        with heartbeat(server) as beat:
            statuses = asyncio.run(fuzz(server, connections))
        wait_for(lambda: not server.server_state.connections and not server.server_state.tasks)
        # Pools of threads grow to their size as they are used; what leaks with connections would be far more.
        wait_for(lambda: threading.active_count() < threads + 12 and open_files() < files + 12)
        wait_for(lambda: len(engine.released) == len(engine.requests))
        assert engine.requests, "no request got through"
        host, port = server.address
        assert httpx.post(f"http://{host}:{port}/v1/prune", content=BODY, headers=JSON).status_code == 200
    answers = ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items()))
    with capsys.disabled():
        print(f"\nraw bytes: {connections} connections, {statuses.total()} answers: {answers}")
        print(f"the loop's longest stall: {beat.stall * 1000:.0f} ms of work, {beat.late * 1000:.0f} ms by the clock")
    assert beat.stall < LONGEST


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("begun", "status"),
    [
        (b"", None),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", None),
        (post(b"Content-Length: 99999\r\n", b"{"), 408),
        (chunked(b"1\r\n{\r\n"), 408),
        (get(b"/health"), 200),
    ],
)
def test_a_connection_on_which_nothing_more_comes_is_ended(tmp_path, begun, status):
    with fuzzed_server(tmp_path) as (server, _):
        statuses = check_errors(asyncio.run(exchange(server.address, [begun])))
        assert statuses == ([] if status is None else [status])
        wait_for(lambda: not server.server_state.connections)


@pytest.mark.parametrize(
    ("begun", "status"),
    [
        (b"GET /health HTTP/1.1\r\nX: ", None),
        (post(b"Content-Length: 99999\r\n", b"{"), 408),
        (b"POST /v1/prune HTTP/1.1\r\nContent-Length: 99999\r\nContent-Type: a\r\nHost: localhost\r\n\r\n", 408),
        (b"POST /nowhere HTTP/1.1\r\nContent-Length: 99999\r\nHost: localhost\r\n\r\n", 404),
    ],
)
def test_bytes_that_drip_do_not_keep_a_connection_open(tmp_path, begun, status):
    async def drip(address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(begun)
        answer = asyncio.ensure_future(reader.read())
        try:
            async with asyncio.timeout(SECONDS):
                while not answer.done():
                    writer.write(b"x")
                    await asyncio.wait([answer], timeout=0.05)
        finally:
            writer.close()
        return b"" if answer.exception() else answer.result()

    with fuzzed_server(tmp_path) as (server, _):
        statuses = check_errors(asyncio.run(drip(server.address)))
        assert statuses in ([], [] if status is None else [status])
        wait_for(lambda: not server.server_state.connections)


async def pour(address, head, piece):
    """Send `piece` without end until the server has had enough; what it said."""
    reader, writer = await asyncio.open_connection(*address)
    answer = asyncio.ensure_future(reader.read())
    writer.write(head)
    async with asyncio.timeout(SECONDS):
        while not answer.done():
            writer.write(piece)
            await asyncio.wait([answer], timeout=0.001)
    writer.close()
    return b"" if answer.exception() else answer.result()


@pytest.mark.parametrize(
    ("head", "piece", "status"),
    [
        (chunked(), b"1000\r\n" + b" " * 4096 + b"\r\n", 413),
        (chunked(headers=b"Content-Length: 5\r\n"), b"", 400),
        (chunked(), b"1\r\n \r\n" * 1000, 400),
        (chunked(), b"1;" + b"x" * 1000 + b"\r\n \r\n", 400),
        (chunked(b"0\r\n"), b"Trailer: x\r\n" * 1000, 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", b"x" * 1000, 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n", 431),
        (b"GET /" + b"x" * 10_000, b"x" * 1000, 431),
    ],
)
def test_what_comes_without_end_is_refused_and_the_connection_closed(tmp_path, head, piece, status):
    with fuzzed_server(tmp_path, max_body_bytes=500_000) as (server, engine):
        assert check_errors(asyncio.run(pour(server.address, head, piece))) == [status]
        assert engine.requests == []
        wait_for(lambda: not server.server_state.connections)


def test_a_refused_body_is_not_parsed_and_its_answer_says_that_the_connection_ends(tmp_path, monkeypatch):
    parsed = []
    monkeypatch.setattr(Connection, "on_body", lambda self, body: parsed.append(len(body)))
    head = b"POST /v1/prune HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000000\r\n\r\n"
    with fuzzed_server(tmp_path, api_key=("k",)) as (server, _):
        answer = asyncio.run(pour(server.address, head, b" " * 100_000))
    assert check_errors(answer) == [401]
    assert b"\r\nconnection: close\r\n" in answer
    assert sum(parsed) <= 400_000  # what was there before the answer


def test_a_body_in_tiny_chunks_is_refused_before_much_of_it_is_parsed(tmp_path, monkeypatch):
    pieces, on_body = [], Connection.on_body

    def counted(self, body):
        pieces.append(len(body))
        on_body(self, body)

    monkeypatch.setattr(Connection, "on_body", counted)
    head = b"POST /v1/prune HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with fuzzed_server(tmp_path) as (server, _):
        answer = asyncio.run(exchange(server.address, [head + b"1\r\n \r\n" * 200_000]))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"chunks are too small" in answer
    assert len(pieces) < 5_000


def test_connections_leave_files_for_what_answers_need(tmp_path, monkeypatch, caplog):
    """Those that are open go on; new ones are closed at once, and the log says why."""

    async def ask_on(address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(get(b"/health", b"Host: localhost\r\n"))
        await reader.readuntil(b"\r\n\r\n")
        monkeypatch.setattr(connection.resource, "getrlimit", lambda kind: (open_files(), 10**6))
        refused = [await exchange(address, [get(b"/health")]) for _ in range(3)]
        writer.write(get(b"/health"))
        answered = await reader.read()
        monkeypatch.undo()
        return refused, answered, await exchange(address, [get(b"/health")])

    with fuzzed_server(tmp_path, receive_timeout=SECONDS) as (server, _):
        refused, kept, new = asyncio.run(ask_on(server.address))
    assert refused == [b""] * 3
    assert (check_errors(kept), check_errors(new)) == ([200], [200])
    assert "almost as many files are open" in caplog.text


@pytest.mark.parametrize("headers", [b"", b"Host: localhost\r\nHost: y\r\n"])
def test_a_request_names_its_host_once(tmp_path, headers):
    with fuzzed_server(tmp_path) as (server, _):
        assert check_errors(asyncio.run(exchange(server.address, [get(b"/health", headers)]))) == [400]


def test_a_request_that_asks_for_http_2_is_answered_with_its_body_by_http_1(tmp_path):
    """As Java's HttpClient asks, which then goes on over the same connection."""
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    with fuzzed_server(tmp_path) as (server, engine):
        answer = asyncio.run(exchange(server.address, [post(wish + LENGTH), post(LENGTH)]))
        assert check_errors(answer) == [200, 200]
        assert len(engine.requests) == 2


async def test_the_application_is_woken_for_much_of_a_body_and_not_for_every_chunk(tmp_path):
    woken = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            while (message := await receive())["more_body"]:
                woken.append(len(message["body"]))
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

    def send_all():
        with running(app, Settings(log_level="warning", receive_timeout=RECEIVE_TIMEOUT)) as server:
            chunks = [b"8\r\n........\r\n" * 1000] * 40
            return asyncio.run(exchange(server.address, [chunked(), *chunks, b"0\r\n\r\n"]))

    assert check_errors(await asyncio.to_thread(send_all)) == [204]
    assert len(woken) <= 40 * 8000 / 2**16


def test_pipelined_requests_are_answered_in_order(tmp_path):
    last = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with fuzzed_server(tmp_path) as (server, _):
        answer = asyncio.run(exchange(server.address, [post(LENGTH) + get(b"/nowhere") + post(LENGTH) + last]))
    assert check_errors(answer) == [200, 404, 200, 200]


def test_what_a_client_sends_cannot_forge_lines_of_the_log(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG), fuzzed_server(tmp_path) as (server, _):
        server.config.access_log = True
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
        for target, header in [
            (b"/v1/models/%0d%0aforged", b"X-Request-Id: %0d%0aforged\r\n"),
            (b"/nowhere?a=%0aforged", b"X-Request-Id: a\r\n forged\r\n"),
            (b"/\xe2\x80\xa8forged", b"X-Request-Id: forged\x1b[31m\r\n"),
        ]:
            asyncio.run(exchange(server.address, [get(target, b"Host: localhost\r\nConnection: close\r\n" + header)]))
    lines = [record.getMessage() for record in caplog.records if "forged" in record.getMessage()]
    assert not any(re.search(r"[\x00-\x1f\x7f\u2028]", line) for line in lines)
