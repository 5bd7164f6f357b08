"""Functions that make calls become methods of both kinds of client, which make and send them."""

import inspect
from collections.abc import Callable, Coroutine
from functools import partial, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, overload

from covervlm.clients.calls import Call, Connection, finished

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")


class _Sender:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection


class Blocking(_Sender):
    """Base of what has blocking methods: Client, and its parts such as client.jobs."""

    def _send(self, make: Callable[[], Call[R]]) -> R:
        return finished(self._connection.make_and_send(make))


class Asyncio(_Sender):
    """Base of what has methods for asyncio: AsyncClient and its parts."""

    def _send(self, make: Callable[[], Call[R]]) -> Coroutine[Any, Any, R]:
        return self._connection.make_and_send(make)


class Method(Generic[P, R, A]):
    """A method with the parameters P, which returns R where it is blocking and A where it is for asyncio."""

    def __init__(self, function: Any, like: Callable[P, Any], summary: str | None = None) -> None:
        """function: of `self` and the parameters. like: has the name, the parameters and the docstring."""
        # Without a return annotation: `like` returns the call, the method its result.
        parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
        parameters += inspect.signature(like).parameters.values()
        update_wrapper(function, like, assigned=("__module__", "__name__", "__qualname__"))
        function.__doc__ = summary or like.__doc__
        function.__signature__ = inspect.Signature(parameters)
        self._function = function

    @overload
    def __get__(self, instance: Blocking, owner: type) -> Callable[P, R]: ...
    @overload
    def __get__(self, instance: Asyncio, owner: type) -> Callable[P, A]: ...
    @overload
    def __get__(self, instance: None, owner: type) -> Callable[..., Any]: ...
    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return self._function.__get__(instance, owner)  # type: ignore[no-any-return]


def method(make: Callable[P, Call[R]]) -> Method[P, R, Coroutine[Any, Any, R]]:
    """A method that returns the result of the call that `make` makes, or a coroutine of it."""

    def send(self: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self._send(partial(make, *args, **kwargs))

    return Method(send, make)
