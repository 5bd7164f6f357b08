"""Answers that follow a schema: what the server is told of it, and what the answer's text is made into."""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from covervlm.clients.errors import ResponseFormatError

Schema: TypeAlias = Mapping[str, Any] | type[Any]
"""A JSON schema, or a type that pydantic makes one of."""


def response_format(schema: Schema) -> dict[str, Any]:
    """The field of the request. Raises TypeError for a type where pydantic is missing or knows no schema of it."""
    wanted = schema if isinstance(schema, Mapping) else closed(_adapter(schema).json_schema())
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted, "strict": True}}


def parsed(text: str, schema: Schema, *, cut: bool) -> Any:
    """The answer as JSON, or as the type. cut: whether it lacks its end. Raises ResponseFormatError."""
    try:
        return json.loads(text) if isinstance(schema, Mapping) else _adapter(schema).validate_json(text)
    except ValueError as error:  # pydantic's are some, too
        problem = "was cut off before its end; allow it more tokens" if cut else f"does not follow its schema: {error}"
        raise ResponseFormatError(f"The answer {problem}.") from error


def closed(schema: Any) -> Any:
    """The JSON schema without room for properties that it does not name, where it does not ask for them.

    Nobody would read them, and a model that is free to add some may not come to an end.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    parts = {name: closed(part) for name, part in schema.items()}
    objects = parts.get("type") == "object" and "properties" in parts
    return {"additionalProperties": False, **parts} if objects else parts


def _adapter(schema: type[Any]) -> Any:
    try:
        from pydantic import TypeAdapter
    except ImportError:
        raise TypeError("a type as a schema needs pydantic; without it, give a JSON schema as a dict") from None
    return TypeAdapter(schema)
