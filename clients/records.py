"""The parts of an answer as frozen dataclasses, read from its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Record:
    """A part of an answer; its fields have the names that they have in the JSON, and tuples in place of lists."""

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """Raises TypeError where a field without a default is missing."""
        return cls(**{field.name: _frozen(body[field.name]) for field in fields(cls) if field.name in body})

    @classmethod
    def read_list(cls, body: Mapping[str, Any]) -> list[Self]:
        return [cls.read(entry) for entry in body["data"]]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
