"""What an answer must look like, within bounds that keep a request from costing others anything."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from covervlm.server.core.errors import InvalidRequest

MAX_PROPERTIES = 1000
MAX_REFERENCES = 500
MAX_VALUES = 20_000
MAX_LINES = 500
MAX_CHOICES = 10_000
MAX_DEPTH = 64
MAX_CHARACTERS = {"json": 128 * 1024, "regex": 4096, "choice": 128 * 1024, "grammar": 16 * 1024, "tools": 512 * 1024}
"""Compilers recurse: a chain of some thousand references or rules would overflow a thread's stack."""

BLANKS = r" |\n {0,24}|\n\t{0,6}"
"""Between parts of JSON: a space, or an indented new line. An unsure model could write blanks without end."""

Kind = Literal["json", "regex", "choice", "grammar", "tools"]
_NOUNS = {
    "json": "schema",
    "regex": "regular expression",
    "choice": "list of choices",
    "grammar": "grammar",
    "tools": "list of tools",
}


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like from its first character to its last; every instance is within the bounds.

    text: by `kind`, a JSON schema, a regular expression, a JSON list of strings, or a grammar in Lark's notation, with
    `%json {...}` for what is a schema's, or in GBNF's; "tools" is such a grammar, of schemas that were measured.
    lenient: keywords of a schema that no grammar can express are ignored instead of refused. `param` is the field of
    the request that an error is about; parts: what the lines of "tools" are of, by their numbers.

    Raises InvalidRequest.
    """

    kind: Kind
    text: str
    lenient: bool = False
    param: str = field(default="structured_outputs", compare=False)
    parts: Mapping[int, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.kind == "json":
            return  # measured before it became a text
        limit = MAX_CHARACTERS[self.kind]
        if not self.text:
            raise self.refusal("it is empty")
        if len(self.text) > limit:
            raise self.refusal(f"it has {len(self.text)} characters, more than {limit}")
        if self.kind == "grammar" and len(self.text.splitlines()) > MAX_LINES:
            raise self.refusal(f"it has more than {MAX_LINES} lines")

    @classmethod
    def of_schema(cls, schema: Any, *, lenient: bool = False, param: str = "structured_outputs") -> Self:
        """The grammar of a JSON schema, parsed or as text. Raises InvalidRequest."""
        made = cls("json", "", lenient, param)
        if isinstance(schema, str):
            if len(schema) > MAX_CHARACTERS["json"]:
                raise made.refusal(f"it has more than {MAX_CHARACTERS['json']} characters")
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError):
                raise made.refusal("it is not JSON, or nests too deeply") from None
        if not isinstance(schema, dict):
            raise made.refusal("it should be a JSON object")
        if problem := _excess(schema):
            raise made.refusal(problem)
        return cls("json", json.dumps(schema, ensure_ascii=False), lenient, param)

    @classmethod
    def of_choices(cls, choices: list[str], *, param: str = "structured_outputs") -> Self:
        if len(choices) > MAX_CHOICES:
            raise cls("choice", "[]", param=param).refusal(f"it has {len(choices)} choices, more than {MAX_CHOICES}")
        return cls("choice", json.dumps(choices, ensure_ascii=False), param=param)

    def refusal(self, problem: str) -> InvalidRequest:
        """The error for a grammar that cannot be used; problem: what is wrong, as a clause whose subject is "it"."""
        message = f"No answer can be held to this {_NOUNS[self.kind]}: {problem}."
        return InvalidRequest(message, param=self.param, code="invalid_grammar")


def _excess(schema: Mapping[str, Any]) -> str | None:
    """What a schema has too much of, or None; looks at no more of the schema than the bounds allow."""
    properties = references = characters = values = 0
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                properties += len(value["properties"]) if isinstance(value.get("properties"), dict) else 0
                references += isinstance(value.get("$ref"), str)
                below += value.values()
                characters += sum(map(len, value)) if len(value) <= MAX_VALUES else 0
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                characters += len(value)
        values += len(below)
        if properties > MAX_PROPERTIES:
            return f"it has more than {MAX_PROPERTIES} properties"
        if references > MAX_REFERENCES:
            return f"it has more than {MAX_REFERENCES} references"
        if values > MAX_VALUES:
            return f"it has more than {MAX_VALUES} values"
        if characters > MAX_CHARACTERS["json"]:
            return f"it has more than {MAX_CHARACTERS['json']} characters"
        if not below:
            return None
        level = below
    return f"it nests more than {MAX_DEPTH} levels deep"
