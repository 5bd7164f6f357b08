"""Holds answers against the server's own OpenAPI document: JSON as the standard has it, of the documented shape."""

import json
from typing import Any

from jsonschema import Draft202012Validator

from tests.e2e.attack import attacked
from tests.e2e.attack.attacker import Answer, Attacker


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def strictly(data: bytes) -> Any:
    """JSON without NaN and infinities. Raises ValueError."""
    return json.loads(data, parse_constant=_no_number)


class Schema:
    """What the server says of its routes."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    @classmethod
    async def of(cls, attacker: Attacker) -> "Schema":
        document = (await attacker.request("GET", "/openapi.json", counted=False)).json()
        return cls(attacked.as_today(document))

    def wrong(self, method: str, route: str, answer: Answer) -> str | None:
        """What the answer of a route, e.g. /v1/jobs/{job}, has that its schema has not; None where it conforms."""
        responses = self._document["paths"][route][method.lower()]["responses"]
        documented = responses.get(str(answer.status)) or responses.get(f"{answer.status // 100}XX")
        if documented is None:
            return f"{method} {route} answers {answer.status}, which is not documented"
        try:
            value = strictly(answer.body)
        except ValueError as error:
            return f"{method} {route}: {error}"
        schema = documented["content"]["application/json"]["schema"]
        validator = Draft202012Validator({**schema, "components": self._document["components"]})
        for found in validator.iter_errors(value):
            return f"{method} {route}: {found.json_path} {found.message[:100]}"
        return None


async def conforming(
    attacker: Attacker, schema: Schema, method: str, route: str, body: object = b"", **places: str
) -> Answer:
    """The answer to one request; what is wrong with it becomes a complaint."""
    answer = await attacker.request(method, route.format(**places), body)
    if wrong := schema.wrong(method, route, answer):
        attacker.complain(wrong)
    return answer
