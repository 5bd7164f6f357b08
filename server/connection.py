"""A client's connection: uvicorn's HTTP/1.1 over httptools, with bounds on heads, on framing, and on patience."""

import asyncio
import logging
import resource
from typing import Any

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

log = logging.getLogger(__name__)

MOST_HEAD_BYTES = 64 * 1024
MOST_HEADERS = 100
MOST_FRAMING = 4
"""Bytes on the wire for each byte of a body, beside _FRAMING_AT_FIRST."""
_FRAMING_AT_FIRST = 4 * 1024
_SLICE = 8 * 1024
"""Bytes that are parsed before it is looked at what they were: every chunk is a call, however short."""
LINGER_SECONDS = 2.0
"""How long a client may go on sending a refused body; closing at once could lose the answer."""


_SPARE_FILES = 64
"""Of the files that the process may have open, so many, or an eighth where that is less, are not for connections."""


class Refused(Exception):
    """Raised in the parser's callbacks for what is not accepted."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Connection(HttpToolsProtocol):
    """Ends connections whose next request's head has not arrived `receive_timeout` seconds after it could begin.

    A body that is not wanted, since the request is answered already, ends the connection and is not parsed. Bodies that
    are read are the application's matter; it is woken once for many small pieces. Connections that are full, because
    the client does not read, end after `send_timeout` seconds.
    """

    def __init__(self, *args: Any, receive_timeout: float, send_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive_timeout = receive_timeout
        self._send_timeout = send_timeout
        self._overdue: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._in_body = self._chunked = False
        self._arrived = 0
        self._taken = 0
        self._pieces: list[bytes] = []
        self._head = 0
        self._over = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if _is_among_the_last(transport.get_extra_info("socket").fileno()):
            # Answers on other connections need files as well; and where accepting fails, it fails for all alike.
            log.warning("a connection was closed at once: almost as many files are open as this process may have")
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._over or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        try:
            while data:
                whole = self._in_body and not self._chunked
                self._take(data if whole else data[:_SLICE])
                data = b"" if whole else data[_SLICE:]
        except Refused as refused:
            self._refuse(refused)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, Refused) else Refused(400, "Invalid HTTP request received."))
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()
        self._was_read()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._was_read()
        self._unread = self.loop.call_later(self._send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._was_read()

    def _take(self, data: bytes) -> None:
        began = self._in_body
        self._arrived += len(data)
        self._parse(data)
        self._hand_on()
        if self._in_body and not began:  # how much of these bytes was the head is not known
            self._arrived = self._taken = 0
        if not self._in_body and self._arrived - len(data) > MOST_HEAD_BYTES:
            raise Refused(431, "The request's head is too long.")
        if self._in_body and self._chunked and self._arrived > _FRAMING_AT_FIRST + MOST_FRAMING * self._taken:
            raise Refused(400, "The body's chunks are too small; send larger ones.")

    def _hand_on(self) -> None:
        """Add to the body what has arrived of it, in one piece: each is a copy of those before."""
        if not self._pieces:
            return
        self.cycle.body += b"".join(self._pieces)
        self._pieces.clear()
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
            self.cycle.message_event.set()

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stopped:
                data = self._head_without_upgrade() + data[stopped.args[0] :]
                self.parser = httptools.HttpRequestParser(self)

    def _head_without_upgrade(self) -> bytes:
        """A request to upgrade is answered in HTTP/1.1; the parser would take its body for the other protocol."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise Refused(400, "This server is not a proxy.")
        lines = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([b"%b %b HTTP/%b" % (method, self.url, version), *lines, b"", b""])

    def _refuse(self, refused: Refused) -> None:
        """Read no further; answer what cannot be parsed, unless an earlier request is being answered."""
        self._over = True
        self._forget()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                return
            if cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        text = str(refused).encode()
        head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[refused.status] + head % len(text) + text)
        self._linger()

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # a trailer, which is ignored
            return
        super().on_header(name, value)
        self._head += len(name) + len(value)
        if self._head > MOST_HEAD_BYTES or len(self.headers) > MOST_HEADERS:
            raise Refused(431, f"A request may have {MOST_HEADERS} headers of {MOST_HEAD_BYTES} bytes in all at most.")

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() != "1.0"):
            raise Refused(400, "A request must have exactly one Host header.")
        super().on_headers_complete()
        self._chunked = any(name == b"transfer-encoding" for name, _ in self.headers)
        self._in_body, self._arrived, self._taken = True, 0, 0

    def on_body(self, body: bytes) -> None:
        """The application is woken for much, not for every chunk."""
        self._taken += len(body)
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._hand_on()
            self._in_body, self._arrived = False, 0
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return False

    # Answers.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        async def answer(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            async def send_and_end(message: ASGISendEvent) -> None:
                if message["type"] == "http.response.start" and cycle.more_body:
                    self._over = True
                    cycle.keep_alive = False  # so the head says that the connection ends
                    await send(message)
                    cycle.keep_alive = True  # but it must not end at once
                else:
                    await send(message)

            await app(scope, receive, send_and_end)

        super()._start_asgi_task(cycle, answer)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._over and self.cycle.response_complete and not self.transport.is_closing():
            self._linger()
        self._watch()

    # Clocks.

    def _linger(self) -> None:
        """Say that nothing more comes, and end the connection a little later."""
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._forget()
        self._overdue = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _watch(self) -> None:
        """The clock runs while no request is being answered, whatever bytes drip in."""
        if self._over:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._overdue is None and not self.transport.is_closing():
            # Not close(), which waits for a client that does not read.
            self._overdue = self.loop.call_later(self._receive_timeout, self.transport.abort)

    def _forget(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _was_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def _is_among_the_last(descriptor: int) -> bool:
    """Whether a file that was opened just now leaves too few; the system gives out the lowest number that is free."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most != resource.RLIM_INFINITY and descriptor >= most - min(_SPARE_FILES, most // 8)
