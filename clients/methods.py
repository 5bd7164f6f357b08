"""Functions that make calls become methods that make and send them: blocking, or for asyncio."""

import inspect
from asyncio import to_thread
from collections.abc import Callable, Coroutine
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

import httpx

from covervlm.clients.answers import ChatAnswer
from covervlm.clients.calls import Call
from covervlm.clients.conversations import streamed
from covervlm.clients.streaming import AsyncStream, Stream

if TYPE_CHECKING:
    from covervlm.clients.async_client import AsyncClient
    from covervlm.clients.client import Client

P = ParamSpec("P")
R = TypeVar("R")


class Sender(Protocol):
    """What sends calls: a Client, and its parts. `send` waits for the result, `open` leaves the response unread."""

    def send(self, call: Call[R]) -> R: ...
    def open(self, call: Call[Any]) -> httpx.Response: ...


class AsyncSender(Protocol):
    """The same for asyncio."""

    async def send(self, call: Call[R]) -> R: ...
    async def open(self, call: Call[Any]) -> httpx.Response: ...


def blocking(make: Callable[P, Call[R]]) -> Callable[Concatenate[Sender, P], R]:
    """A method with the arguments of `make` that returns the call's result."""

    def method(self: Sender, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.send(make(*args, **kwargs))

    return _described(method, make)


def asynchronous(make: Callable[P, Call[R]]) -> Callable[Concatenate[AsyncSender, P], Coroutine[Any, Any, R]]:
    """The same for asyncio."""

    async def method(self: AsyncSender, *args: P.args, **kwargs: P.kwargs) -> R:
        # Reading and encoding images take long enough to be felt on the event loop.
        return await self.send(await to_thread(make, *args, **kwargs))

    return _described(method, make)


def streaming(make: Callable[P, Call[ChatAnswer]]) -> Callable[Concatenate[Sender, P], Stream]:
    """A method with the arguments of `make` that returns the answer as a stream."""

    def method(self: Sender, *args: P.args, **kwargs: P.kwargs) -> Stream:
        call = streamed(make(*args, **kwargs))
        return Stream(lambda: self.open(call))

    return _described(method, make, "The same piece by piece: `for piece in client.stream(...)`.")


def async_streaming(make: Callable[P, Call[ChatAnswer]]) -> Callable[Concatenate[AsyncSender, P], AsyncStream]:
    """The same for asyncio."""

    def method(self: AsyncSender, *args: P.args, **kwargs: P.kwargs) -> AsyncStream:
        async def send() -> httpx.Response:
            return await self.open(streamed(await to_thread(make, *args, **kwargs)))

        return AsyncStream(send)

    return _described(method, make, "The same piece by piece: `async for piece in client.stream(...)`.")


class Part:
    """A part of a Client for one kind of resource, e.g. client.jobs."""

    def __init__(self, client: "Client") -> None:
        self.client = client

    def send(self, call: Call[R]) -> R:
        return self.client.send(call)

    def open(self, call: Call[Any]) -> httpx.Response:
        return self.client.open(call)


class AsyncPart:
    """The same for asyncio."""

    def __init__(self, client: "AsyncClient") -> None:
        self.client = client

    async def send(self, call: Call[R]) -> R:
        return await self.client.send(call)

    async def open(self, call: Call[Any]) -> httpx.Response:
        return await self.client.open(call)


M = TypeVar("M", bound=Callable[..., Any])


def _described(method: M, make: Callable[..., Any], summary: str | None = None) -> M:
    """The method under the name, signature and docstring of what makes its call."""
    # Without the annotations, which tell of the call and not of the result.
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    parameters += inspect.signature(make).parameters.values()
    update_wrapper(method, make, assigned=("__module__", "__name__", "__qualname__"))
    method.__doc__ = summary or make.__doc__
    method.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return method
