"""Functions that an answer may call, as OpenAI's chat completions spell them: tools and tool_choice."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag
from pydantic_core import PydanticCustomError

from covervlm.server.api.errors import UNSUPPORTED_PARAMETER, printable
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import Function
from covervlm.server.core.grammar import MAX_CHARACTERS, Grammar
from covervlm.server.core.wire import Wire, one_of

MOST_TOOLS = 128
FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class FunctionDefinition(Wire):
    """`parameters` is a JSON schema of an object. With `strict`, a keyword of it that cannot be enforced is a 400."""

    name: FunctionName
    description: Annotated[str, Field(max_length=16 * 1024)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Wire):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(Wire):
    name: FunctionName


class NamedChoice(Wire):
    type: Literal["function"]
    function: FunctionReference


def _functions_alone(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "function":
        message = "Tools of type '{type}' are not supported; use 'function'."
        raise PydanticCustomError(UNSUPPORTED_PARAMETER, message, {"type": printable(kind[:40])})
    return value


def _choice_tag(value: Any) -> str | None:
    return "<word>" if isinstance(value, str) else "<function>" if isinstance(value, dict | NamedChoice) else None


AnyTool = Annotated[FunctionTool, BeforeValidator(_functions_alone)]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")] | Annotated[NamedChoice, Tag("<function>")],
    one_of(_choice_tag, "'none', 'auto', 'required' or an object that names a function"),
    BeforeValidator(_functions_alone),
]


def functions_of(tools: Sequence[FunctionTool]) -> tuple[Function, ...]:
    """The engine's terms for them. Raises InvalidRequest naming the place of what is out of bounds."""
    functions: dict[str, Function] = {}
    characters = 0
    for i, tool in enumerate(tools):
        given, place = tool.function, f"tools[{i}].function"
        parameters = given.parameters or {"properties": {}, "additionalProperties": False}
        measured = Grammar.of_schema(parameters, param=f"{place}.parameters")
        characters += len(measured.text) + len(given.description or "")
        if parameters.get("type", "object") != "object":
            raise _invalid(f"{place}.parameters.type", "should be 'object', because arguments have names")
        if given.name in functions:
            raise _invalid(f"{place}.name", f"'{given.name}' is the name of an earlier function")
        if characters > MAX_CHARACTERS["json"]:
            raise _invalid("tools", f"may have {MAX_CHARACTERS['json']} characters at most in all")
        functions[given.name] = Function(
            given.name, given.description or "", {"type": "object"} | parameters, bool(given.strict)
        )
    return tuple(functions.values())


def _invalid(place: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{place}': {problem}.", param=place, code="invalid_value")
