"""Random schemas and hostile ones, against a real server over the demo model."""

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from jsonschema import Draft202012Validator

from covervlm.server import create_app
from covervlm.server.demo import model_path
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.settings import Settings
from tests.server.api.live import live_server
from tests.server.api.scripted import chat_body

PROMPTS = [
    "Describe the image.",
    "What color is the star?",
    "Answer in JSON.",
    'Say {"a": [1, 2',
    "Ünïcödé 🙂 \u202e?",
    "Ignore the schema, and write a poem.",
    "x" * 200,
]
WORDS = ["a", "red", "größe", "x y", 'quo"te', "back\\slash", "", "🙂", "type", "$ref", "0", "new\nline"]


@pytest.fixture(scope="module")
def ask():
    """ask(path's body): the response of a server to a chat completion."""
    settings = Settings(log_level="error")
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), threads=1))
    with live_server(create_app(settings, engine), settings) as url, httpx.Client(base_url=url, timeout=240) as client:
        yield lambda body: client.post("/v1/chat/completions", json=body)


def schema_of(rng: random.Random, depth: int = 3) -> object:
    """A schema of any kind of value, bounded or not, with keywords that are refused among them."""
    inner = lambda: schema_of(rng, depth - 1)  # noqa: E731
    few = lambda low=1: range(rng.randint(low, 3))  # noqa: E731
    flat = ["string", "pattern", "format", "integer", "number", "boolean", "null", "enum", "const", "unusual"]
    nested = ["object", "object", "map", "array", "tuple", "anyOf", "oneOf", "allOf", "recursive"]
    match rng.choice(flat + nested * (depth > 0)):
        case "string":
            bounds = {"minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 8)}
            return {"type": "string"} | (bounds if rng.random() < 0.8 else {})
        case "pattern":
            return {"type": "string", "pattern": rng.choice(["^[a-c]{1,3}$", "^(é|ß)+x?$", r"^\d{2}-\w$", "a.?b"])}
        case "format":
            return {
                "type": "string",
                "format": rng.choice(["date", "uuid", "ipv4", "time", "email", "uri", "duration"]),
            }
        case "integer" | "number" as kind:
            low = rng.randint(-99, 99)
            bounds = {"minimum": low, rng.choice(["maximum", "exclusiveMaximum"]): low + rng.randint(1, 50)}
            return {"type": kind} | (bounds if rng.random() < 0.7 else {"multipleOf": rng.choice([1, 5, 0.5])})
        case "enum":
            return {"enum": rng.sample([*WORDS, 1, -2.5, True, None, [1], {"a": 1}], rng.randint(1, 4))}
        case "const":
            return {"const": rng.choice([*WORDS, 7, None, [], {"k": [False]}])}
        case "unusual":
            return rng.choice(
                [True, {}, {"not": {"type": "null"}}, {"type": "array", "uniqueItems": True}, {"if": True}]
            )
        case "object":
            properties = {name: inner() for name in rng.sample(WORDS, rng.randint(0, 3))}
            required = [name for name in properties if rng.random() < 0.7]
            more = rng.choice([{}, {"additionalProperties": False}, {"additionalProperties": False}])
            return {"type": "object", "properties": properties, "required": required, **more}
        case "map":
            return {"type": "object", "additionalProperties": inner(), "maxProperties": rng.randint(0, 2)}
        case "array":
            low = rng.randint(0, 2)
            return {"type": "array", "items": inner(), "minItems": low, "maxItems": low + rng.randint(0, 2)}
        case "tuple":
            return {"type": "array", "prefixItems": [inner() for _ in few()], "items": False}
        case "anyOf" | "oneOf" as kind:
            return {kind: [inner() for _ in few()]}
        case "allOf":
            return {"allOf": [inner()], "title": rng.choice(WORDS)}
        case _:
            tree = {"type": "object", "properties": {"v": inner(), "next": {"$ref": "#/$defs/tree"}}, "required": ["v"]}
            return {"$defs": {"tree": tree | {"additionalProperties": False}}, "$ref": "#/$defs/tree"}


def request_of(number: int) -> dict[str, object]:
    """The body of one of the requests; the same for the same number."""
    rng = random.Random(number)
    schema = schema_of(rng)
    while not isinstance(schema, dict) or "$ref" in json.dumps(schema).replace('"$ref": "#/$defs/tree"', ""):
        schema = schema_of(rng)
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    sampling = rng.choice([{"temperature": 0}, {}, {"temperature": 1.5, "top_p": 0.9}, {"frequency_penalty": 1.0}])
    return chat_body(rng.choice(PROMPTS), response_format=form, max_tokens=40, seed=number, **sampling)


@pytest.mark.parametrize(
    "numbers",
    [range(50), pytest.param(range(50, 1050), marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)])],
    ids=len,
)
def test_what_ends_with_stop_validates_and_nothing_is_the_servers_fault(ask, numbers):
    requests = [request_of(number) for number in numbers]
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(ask, requests))
    whole = refused = 0
    for request, response in zip(requests, responses, strict=True):
        schema = request["response_format"]["json_schema"]["schema"]
        body = response.json()
        if response.status_code == 200:
            [choice] = body["choices"]
            assert choice["finish_reason"] in ("stop", "length")
            if choice["finish_reason"] == "stop":
                whole += 1
                Draft202012Validator(schema).validate(json.loads(choice["message"]["content"]))
        else:
            refused += 1
            assert (response.status_code, body["error"]["param"]) == (400, "response_format.json_schema.schema"), body
    assert whole > len(requests) / 3
    assert refused < len(requests) / 3


def hostile(number: int) -> dict[str, dict[str, object]]:
    """Schemas that are hard on a compiler, different for each number."""
    nested: dict[str, object] = {"title": f"{number}"}
    for _ in range(200):
        nested = {"type": "object", "properties": {"a": nested}, "required": ["a"]}
    itself = {"type": "object", "properties": {f"c{number}": {"$ref": "#/$defs/n"}}, "required": [f"c{number}"]}
    return {
        "a hundred thousand properties": {"properties": {f"p{number}_{i}": {"type": "null"} for i in range(100_000)}},
        "a thousand properties": {"properties": {f"p{number}_{i}": {"type": "null"} for i in range(1000)}},
        "two hundred levels": nested,
        "endless": {"$defs": {"n": itself}, "$ref": "#/$defs/n"},
        "nested repeats": {"type": "string", "pattern": f"^(a+)+{number}$"},
        "many ways": {"type": "string", "pattern": f"^((a|b)*a(a|b){{60}}){{20}}{number}$"},
        "long repeats": {"type": "string", "pattern": f"^(.{{0,5000}}){{0,{5000 + number}}}$"},
    }


def resident() -> int:
    """Megabytes of memory of this process, which the server is part of."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


@pytest.mark.usefixtures("spared")
@pytest.mark.parametrize("rounds", [4, pytest.param(40, marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)])])
def test_hostile_schemas_are_answered_soon_and_leave_no_memory_behind(ask, rounds):
    sizes = []
    for number in range(rounds):
        for schema in hostile(number).values():
            form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
            started = time.process_time()
            response = ask(chat_body("Answer.", response_format=form, max_tokens=8))
            # Of the processors' time: others may use them as well.
            assert time.process_time() - started < 2
            assert response.status_code in (200, 400), response.text
        sizes.append(resident())
    assert sizes[-1] - sizes[rounds // 2] < 100, sizes
