"""A client's connection: uvicorn's HTTP/1.1, which by itself waits for ever for a request that never comes whole."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Ends connections whose next request's head has not arrived `receive_timeout` seconds after it could begin.

    What remains of a body that was answered unread counts as well. Bodies that are read are the application's matter.
    """

    def __init__(self, *args: Any, receive_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive_timeout = receive_timeout
        self._overdue: asyncio.TimerHandle | None = None

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
