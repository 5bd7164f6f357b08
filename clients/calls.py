"""Requests as plain values: method, path, body, and how the answer is read; no network in here."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One request. `read` makes the result from the answer's JSON, or from its bytes where it is `binary`.

    body: sent as JSON; a `model` of None in it stands for the one that is served. content: sent as it is, instead.
    timeout: seconds without a byte, the client's where None. repeatable: whether sending it twice does no harm.
    """

    method: str
    path: str
    read: Callable[[Any], Result]
    body: Mapping[str, Any] | None = None
    content: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    binary: bool = False
    repeatable: bool = True

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)

    @property
    def lacks_model(self) -> bool:
        return self.body is not None and self.body.get("model", "") is None

    def with_model(self, name: str) -> Self:
        return self.replace(body={**(self.body or {}), "model": name})


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
