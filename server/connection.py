"""A client's connection: uvicorn's HTTP/1.1, which by itself waits for ever for clients that do not send or read."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Ends connections whose next request's head has not arrived `receive_timeout` seconds after it could begin.

    What remains of a body that was answered unread counts as well. Bodies that are read are the application's matter.
    Connections that are full, because the client does not read, end after `send_timeout` seconds.
    """

    def __init__(self, *args: Any, receive_timeout: float, send_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive_timeout = receive_timeout
        self._send_timeout = send_timeout
        self._overdue: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
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

    def _should_upgrade(self) -> bool:
        """There is nothing to upgrade to, which is no reason for a line in the log."""
        return False

    def _watch(self) -> None:
        """The clock runs while no request is being answered, whatever bytes drip in."""
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
