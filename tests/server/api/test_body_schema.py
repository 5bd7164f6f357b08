"""A walk over the schema of every body: nothing that any of its places may hold keeps others waiting, and what is
wrong is named in the caller's own terms."""

import copy
import json
import re

import pytest

from tests.server.api.clip_app import clip_client, error
from tests.server.api.test_hostile_bodies import GOOD, replaced

MANY = 60_000
"""Of which no list, and no object, may hold so many."""
HUGE = {
    "array": [[0] * MANY, [{}] * MANY, [[]] * MANY, ["a"] * MANY, [{"type": "text", "text": ""}] * 20_000],
    "object": [{f"k{i}": 0 for i in range(MANY)}, {"k" * 2_000_000: 0}],
    "string": ["a" * 3_000_000, "é" * 2_000_000, "\n" * 3_000_000, "a, " * 1_000_000],
}
TAKEN = {"/v1/completions": "prompt", "/detokenize": "tokens"}
"""Fields without a bound of the API, beside metadata: ids of tokens, which only the model's context bounds."""
LONG_NUMBERS = [9 * 10**4000 - 1, float("nan"), -1e300]
WRONG = [0, "x", [], {}, None, True, 0.5, [0], ["x"], [{}], [None], {"x": 0}, {"type": "x"}, {"type": "text"}, [[[]]]]
INSIDES = re.compile(
    r"function-|lambda(?!_)|constrained|tagged|union|Annotated|instance of|after validation|<|validator|pydantic"
)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with clip_client(tmp_path_factory.mktemp("data")) as client:
        yield client


def named(document, schema):
    """Names of the schemas that one refers to, and that those refer to in turn."""
    found, waiting = set(), [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found.add(name)
                waiting.append(document["components"]["schemas"][name])
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return found


def places(document, schema, elsewhere, way=()):
    """Every place of a body and the types that it may have; lists have one item, and branches are all taken.

    elsewhere: names of schemas that are not gone into.
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        target = document["components"]["schemas"][name]
        yield from [(way, target.get("type"))] if name in elsewhere else places(document, target, elsewhere, way)
    for branch in [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]:
        yield from places(document, branch, elsewhere, way)
    yield way, schema.get("type")
    for name, field in schema.get("properties", {}).items():
        yield from places(document, field, elsewhere, (*way, name))
    if "items" in schema:
        yield from places(document, schema["items"], elsewhere, (*way, 0))


def with_value(body, way, value):
    """The body with the value at the place, which is made where the body has none."""
    if not way:
        return value
    first, *rest = way
    body = copy.copy(body) if isinstance(body, list if first == 0 else dict) else [] if first == 0 else {}
    if first == 0:
        return [with_value(body[0] if body else None, rest, value), *body[1:]]
    body[first] = with_value(body.get(first), rest, value)
    return body


def schema_of(document, path):
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def walk(client, path):
    """The places of a body with their types, without those that the body of an earlier path has in common with it."""
    document = client.app.openapi()
    earlier = [schema_of(document, other) for other in list(GOOD)[: list(GOOD).index(path)]]
    found: dict[tuple, set] = {}
    for way, kind in places(document, schema_of(document, path), named(document, earlier)):
        found.setdefault(way, set()).add(kind)
    return found


def post(client, path, body):
    content = json.dumps(body)
    return client.post(
        path.format(stream="none", name="none"), content=content, headers={"Content-Type": "application/json"}
    )


def test_the_walk_reaches_what_is_deep_inside(client):
    found = walk(client, "/v1/chat/completions")
    assert {"array"} < found[("messages",)] | {None}
    assert "string" in found[("messages", 0, "content", 0, "image_url", "url")]
    assert "array" in found[("stop",)]
    assert len(found) > 60


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)])]
)
def test_whatever_is_huge_is_answered_without_keeping_anybody_waiting(client, path, every):
    """One huge value for each place in turn, or every one; here as everywhere in these tests, a callback that keeps the
    loop busy is a failure."""
    answers, refused = {}, set()
    for way, kinds in walk(client, path).items():
        for kind in sorted(set(HUGE) & kinds):
            turn = len(answers) % len(HUGE[kind])
            for value in HUGE[kind] if every else HUGE[kind][turn : turn + 1]:
                answer = post(client, path, with_value(GOOD[path], way, value))
                answers[way, kind, str(value)[:20]] = answer.status_code
                if answer.status_code >= 400:
                    refused.add(way)
                    error(answer, answer.status_code)
                elif kind != "string":
                    taken = {("metadata",), ("allowed_token_ids",), (TAKEN.get(path),)}
                    assert way[:1] in taken, (way, kind, answer.text[:200])
    assert set(answers.values()) <= {200, 201, 202, 400, 404}
    assert refused


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("number", LONG_NUMBERS)
def test_numbers_beyond_all_bounds_are_answered(client, path, number):
    for way in walk(client, path):
        content = json.dumps(replaced(GOOD[path], (), with_value(GOOD[path], way, "NUMBER")))
        content = content.replace('"NUMBER"', "9" * 4000 if isinstance(number, int) else json.dumps(number))
        answer = client.post(
            path.format(stream="none", name="none"), content=content, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code < 500, (way, answer.text)


@pytest.mark.parametrize("path", GOOD)
def test_what_is_wrong_is_named_in_the_callers_own_terms(client, path):
    """The parameter is a path into the body that was sent, its last step missing at most."""
    blamed = set()
    for way in walk(client, path):
        for value in WRONG:
            body = with_value(GOOD[path], way, value)
            answer = post(client, path, body)
            if answer.status_code != 400:
                continue
            detail = error(answer, 400)
            assert not INSIDES.search(detail["message"]), (way, value, detail)
            if (param := detail["param"]) is None:
                continue
            blamed.add(param)
            inner = body
            steps = re.findall(r"[^.\[\]]+", param)
            for number, step in enumerate(steps):
                key = int(step) if step.isdigit() else step
                there = (
                    isinstance(inner, list) and key in range(len(inner))
                    if step.isdigit()
                    else (isinstance(inner, dict) and key in inner)
                )
                assert there or number == len(steps) - 1, (way, value, detail)
                inner = inner[key] if there else None
    assert len(blamed) >= min(4, len(walk(client, path)) - 1)  # all but the body itself


@pytest.mark.parametrize("path", GOOD)
def test_a_misspelt_field_is_refused_with_the_nearest_one(client, path):
    document = client.app.openapi()
    schema = schema_of(document, path)
    branches = schema.get("oneOf") or schema.get("anyOf") or [schema]
    fields = [{way[0] for way, _ in places(document, one, set()) if len(way) == 1} for one in branches]
    assert fields[0]
    for name in set.intersection(*fields):
        wrong = name + name[-1]
        detail = post(client, path, {**GOOD[path], wrong: 1}).json()["error"]
        assert detail["message"].endswith(f"Unknown parameter: '{wrong}'; did you mean '{name}'?"), detail


@pytest.mark.parametrize(
    ("path", "way", "nearest"),
    [
        ("/v1/chat/completions", ("messages", 0, "rolle"), "role"),
        ("/v1/chat/completions", ("messages", 0, "content", 0, "image_url", "urls"), "url"),
        ("/v1/chat/completions", ("vision_pruning", "keep_token"), "keep_tokens"),
        ("/v1/classifiers", ("parameters", "itterations"), "iterations"),
        ("/v1/chat/completions", ("surprise",), None),
        ("/v1/chat/completions", ("",), None),
    ],
)
def test_so_is_one_deep_inside_and_one_like_no_other_by_itself(client, path, way, nearest):
    body = GOOD[path]
    if len(way) == 6:
        body = with_value(body, way[:-2], {"type": "image_url", "image_url": {"url": "x"}})
    detail = error(post(client, path, with_value(body, way, 1)), 400)
    assert detail["code"] == "unknown_parameter"
    assert detail["message"].endswith(f"; did you mean '{nearest}'?" if nearest else f"'{way[-1]}'."), detail
