"""JSON objects as this server takes them: strictly typed, and with null as good as absent."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

_NULL = {"type": "null"}
_TYPES = {"type", "anyOf", "oneOf", "allOf", "const", "enum", "$ref"}


class Wire(BaseModel):
    """No unknown fields, and no numbers as strings. Null is as good as absent, even for an unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict) or None not in data.values():
            return data
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in data.items() if value is not None or name in required}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        document = handler.resolve_ref_schema(handler(schema))
        document["additionalProperties"] = _NULL
        for name, field in document.get("properties", {}).items():
            takes_null = not _TYPES & set(field) or None in field.get("enum", ()) or _NULL in field.get("anyOf", ())
            if name not in document.get("required", ()) and not takes_null:
                document["properties"][name] = {"anyOf": [field, _NULL]}
        return document


def one_of(tag: Callable[[Any], str | None], expected: str) -> Discriminator:
    """Chooses a union's branch by its tag; tags look like <text>, which tells them from field names in errors."""
    return Discriminator(tag, custom_error_type="value_type", custom_error_message=f"should be {expected}")
