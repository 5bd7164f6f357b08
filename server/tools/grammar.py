"""The grammar of an answer that has to call functions."""

import json
from collections.abc import Mapping
from typing import Any

from covervlm.server.core.generation import Function, ToolUse
from covervlm.server.core.grammar import Grammar
from covervlm.server.tools.formats import FORMATS

_ELSEWHERE = {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "unevaluatedProperties"}
"""Keywords that may name properties which a schema does not list."""
MOST_CALLS = 128
"""In one answer, and in an assistant's turn that comes back in a later request."""


def calls_grammar(tools: ToolUse, *, otherwise: Grammar | None = None) -> Grammar:
    """The grammar, in Lark's notation, of an answer that is calls; arguments follow their function's schema.

    otherwise: a schema that the answer may follow instead. Raises InvalidRequest.
    """
    form = FORMATS[tools.format]
    more = f"({json.dumps(form.between)} call){{0,{MOST_CALLS - 1}}}" if tools.parallel else ""
    names = [f"f{i}" for i in range(len(tools.functions))]
    lines = [
        f"start: calls{'' if otherwise is None else ' | answer'}",
        f"calls: {_literal(form.before)} call {more} {_literal(form.after)}",
        f"call: {' | '.join(names)}",
    ]
    parts = {}
    for name, function in zip(names, tools.functions, strict=True):
        lines.append(f'{name}: {_literal(form.opened(function.name))} %json {_schema(function)} "}}"')
        parts[len(lines)] = f"the parameters of '{function.name}'"
    if otherwise is not None:
        lenient = {"x-guidance": {"lenient": otherwise.lenient, "coerce_one_of": otherwise.lenient}}
        lines.append(f"answer: %json {json.dumps(json.loads(otherwise.text) | lenient)}")
        parts[len(lines)] = f"'{otherwise.param}'"
    return Grammar("tools", "\n".join(lines), param="tools", parts=parts)


def _literal(text: str) -> str:
    return json.dumps(text) if text else ""


def _schema(function: Function) -> str:
    """The schema of a function's arguments, which are always an object.

    Properties that it does not name are not allowed unless it says so: an unsure model would add them without end.
    """
    options = {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
        "lenient": not function.strict,
        "coerce_one_of": not function.strict,
    }
    schema: Mapping[str, Any] = function.parameters
    closed = {} if _ELSEWHERE & set(schema) else {"additionalProperties": False}
    return json.dumps({"type": "object"} | closed | dict(schema) | {"x-guidance": options})
