"""What an answer must look like, in OpenAI's words and those of other servers: response_format, structured_outputs."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag
from pydantic_core import PydanticCustomError

from covervlm.server.api.errors import UNSUPPORTED_PARAMETER
from covervlm.server.api.wire.by_type import ByType
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.grammar import Grammar
from covervlm.server.core.wire import Wire, one_of

ANY_OBJECT = {"type": "object"}


def _schema_tag(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None


Schema = Annotated[
    Annotated[dict[str, Any], Tag("<object>")] | Annotated[str, Tag("<text>")],
    one_of(_schema_tag, "a JSON schema, as an object or as its text"),
]


class TextFormat(Wire):
    type: Literal["text"]


class JsonObjectFormat(Wire):
    """Any JSON object, or as llama.cpp spells it, what a schema allows."""

    type: Literal["json_object"]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class JsonSchema(Wire):
    """With `strict`, a keyword of the schema that cannot be enforced is a 400; otherwise it is ignored."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaFormat(Wire):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, ByType("Response formats")]


def _unsupported(value: Any) -> None:
    if value:
        message = "This constraint is not supported; use 'json', 'regex', 'choice', 'grammar' or 'json_object'."
        raise PydanticCustomError(UNSUPPORTED_PARAMETER, message)


Refused = Annotated[Any, BeforeValidator(_unsupported)]


class StructuredOutputs(Wire):
    """vLLM's: exactly one of `json`, `regex`, `choice`, `grammar` (Lark's notation, or GBNF) and `json_object`."""

    json_: Annotated[Schema | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Refused = None
    whitespace_pattern: Refused = None
    disable_any_whitespace: Refused = None
    disable_additional_properties: Refused = None


def grammar_of(
    response_format: ResponseFormat | None,
    structured_outputs: StructuredOutputs | None,
    forms: Mapping[str, tuple[str, Any]],
) -> Grammar | None:
    """The one grammar that a request asks for; forms: kinds and values of its other fields that ask for one, by name.

    Raises InvalidRequest that names the field: where there are several, or one that is out of bounds.
    """
    asked = dict(forms)
    lenient = False
    match response_format:
        case JsonObjectFormat(schema_=dict(schema)):
            lenient = True
            asked["response_format.schema"] = ("json", schema)
        case JsonObjectFormat():
            asked["response_format"] = ("json_object", True)
        case JsonSchemaFormat(json_schema=given):
            lenient = not given.strict
            asked["response_format.json_schema.schema"] = ("json", given.schema_ or {})
    if structured_outputs is not None:
        values = {name: value for name, value in structured_outputs.model_dump(by_alias=True).items() if value}
        if not values:
            raise InvalidRequest(
                "Exactly one of 'json', 'regex', 'choice', 'grammar' and 'json_object' is needed.",
                param="structured_outputs",
                code="invalid_value",
            )
        asked |= {f"structured_outputs.{name}": (name, value) for name, value in values.items()}
    if len(asked) > 1:
        first, second, *_ = asked
        raise InvalidRequest(
            f"An answer can be held to one form only, but there are '{first}' and '{second}'; drop one.",
            param=second,
            code="invalid_value",
        )
    for param, (kind, value) in asked.items():
        match kind:
            case "json_object":
                return Grammar.of_schema(ANY_OBJECT, param=param)
            case "json":
                return Grammar.of_schema(value, lenient=lenient, param=param)
            case "choice":
                return Grammar.of_choices(value, param=param)
            case "regex":
                return Grammar("regex", value, param=param)
            case _:
                return Grammar("grammar", value, param=param)
    return None
