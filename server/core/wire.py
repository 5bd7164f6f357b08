"""JSON objects as this server takes them: strictly typed, and with null as good as absent."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

UNKNOWN = "unknown_parameter"
"""The type of a validation error for a field that is none; its context has the field's `name` and the `nearest` one."""

_NULL = {"type": "null"}
_TYPES = {"type", "anyOf", "oneOf", "allOf", "const", "enum", "$ref"}


class Wire(BaseModel):
    """No unknown fields, and no numbers as strings. Null is as good as absent, even for an unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = _names(cls)
        if None in data.values():
            required = {name for name, field in cls.model_fields.items() if field.is_required()}
            data = {name: value for name, value in data.items() if value is not None or name in required}
        if (odd := next((name for name in data if name not in known), None)) is not None:
            nearest = get_close_matches(odd[:100], known, 1)
            raise PydanticCustomError(UNKNOWN, UNKNOWN, {"name": odd, "nearest": nearest[0] if nearest else None})
        return data

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        document = handler.resolve_ref_schema(handler(schema))
        document["additionalProperties"] = _NULL
        for name, field in document.get("properties", {}).items():
            takes_null = not _TYPES & set(field) or None in field.get("enum", ()) or _NULL in field.get("anyOf", ())
            if name not in document.get("required", ()) and not takes_null:
                document["properties"][name] = {"anyOf": [field, _NULL]}
        return document


@cache
def _names(cls: type[Wire]) -> frozenset[str]:
    """The fields as they are written."""
    return frozenset(field.alias or name for name, field in cls.model_fields.items())


def one_of(tag: Callable[[Any], str | None], expected: str) -> Discriminator:
    """Chooses a union's branch by its tag; tags look like <text>, which tells them from field names in errors."""
    return Discriminator(tag, custom_error_type="value_type", custom_error_message=f"should be {expected}")
