"""What an answer must look like reaches the engine as one grammar, or the field that is wrong is named."""

import json
import time

import pytest

from covervlm.server.core.grammar import MAX_PROPERTIES, Grammar
from tests.server.api.scripted import chat_body

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]}
TEXT = json.dumps(SCHEMA)
ANY = '{"type": "object"}'

SPELLINGS = {
    "text": ({"response_format": {"type": "text"}}, None),
    "json_object": ({"response_format": {"type": "json_object"}}, Grammar("json", ANY)),
    "strict": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}},
        Grammar("json", TEXT),
    ),
    "not strict": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
        Grammar("json", TEXT, lenient=True),
    ),
    "structured json": ({"structured_outputs": {"json": SCHEMA}}, Grammar("json", TEXT)),
    "structured json as text": ({"structured_outputs": {"json": TEXT}}, Grammar("json", TEXT)),
    "structured object": ({"structured_outputs": {"json_object": True}}, Grammar("json", ANY)),
    "structured regex": ({"structured_outputs": {"regex": "a+", "json": None}}, Grammar("regex", "a+")),
    "structured choice": ({"structured_outputs": {"choice": ["é", "b"]}}, Grammar("choice", '["é", "b"]')),
    "structured grammar": ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Grammar("grammar", 'root ::= "a"')),
    "guided json": ({"guided_json": SCHEMA}, Grammar("json", TEXT)),
    "guided regex": ({"guided_regex": "a+"}, Grammar("regex", "a+")),
    "guided choice": ({"guided_choice": ["a"]}, Grammar("choice", '["a"]')),
    "SGLang's json": ({"json_schema": TEXT}, Grammar("json", TEXT)),
    "SGLang's regex": ({"regex": "a+"}, Grammar("regex", "a+")),
    "SGLang's grammar": ({"ebnf": 'root ::= "a"'}, Grammar("grammar", 'root ::= "a"')),
    "llama.cpp's json": ({"json_schema": SCHEMA}, Grammar("json", TEXT)),
    "llama.cpp's grammar": ({"grammar": 'root ::= "a"'}, Grammar("grammar", 'root ::= "a"')),
    "llama.cpp's format": (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        Grammar("json", TEXT, lenient=True),
    ),
    "a schema without a name": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        Grammar("json", TEXT, lenient=True),
    ),
    "guided grammar": ({"guided_grammar": 'start: "a"'}, Grammar("grammar", 'start: "a"')),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one_grammar(client, engine, name):
    fields, expected = SPELLINGS[name]
    assert client.post("/v1/chat/completions", json=chat_body("Hello", **fields)).status_code == 200
    assert engine.requests[0].sampling.grammar == expected


def schema_of(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def chain(links):
    definitions = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(links)}
    return {"$ref": "#/$defs/d0", "$defs": definitions | {f"d{links}": {}}}


SCHEMA_FIELD = "response_format.json_schema.schema"
REFUSED = {
    "format unknown": ({"response_format": {"type": "xml"}}, "response_format", "unsupported_parameter"),
    "structural tag": (
        {"response_format": {"type": "structural_tag", "structures": []}},
        "response_format",
        "unsupported_parameter",
    ),
    "vLLM's structural tag": (
        {"structured_outputs": {"structural_tag": "{}"}},
        "structured_outputs.structural_tag",
        "unsupported_parameter",
    ),
    "schema no object": (schema_of([]), SCHEMA_FIELD, "invalid_type"),
    "schema missing": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", None),
    "a hundred thousand properties": (
        schema_of({"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(100_000)}}),
        SCHEMA_FIELD + ".properties",
        "invalid_json",
    ),
    "properties here and there": (
        schema_of({"anyOf": [{"properties": {f"p{i}": {}}} for i in range(MAX_PROPERTIES + 1)]}),
        SCHEMA_FIELD,
        "invalid_grammar",
    ),
    "two hundred levels": (schema_of(nested(100)), SCHEMA_FIELD + ".properties", "invalid_json"),
    "a chain of references": (schema_of(chain(3000)), SCHEMA_FIELD, "invalid_grammar"),
    "a long constant": (schema_of({"const": "x" * 200_000}), SCHEMA_FIELD, "invalid_grammar"),
    "long names": (schema_of({"type": "object", "required": ["x" * 200_000]}), SCHEMA_FIELD, "invalid_grammar"),
    "many values": (schema_of({"enum": list(range(100_000))}), SCHEMA_FIELD + ".enum", "invalid_json"),
    "many values of a tool": (
        {"tools": [{"type": "function", "function": {"name": 'a:,[\\"{', "parameters": {"enum": [[]] * 100_000}}}]},
        "tools[0].function.parameters",
        "invalid_json",
    ),
    "text that is no JSON": ({"guided_json": "{"}, "guided_json", "invalid_grammar"),
    "text nested too deeply": ({"guided_json": '{"a":' * 50_000}, "guided_json", "invalid_grammar"),
    "text that is a list": ({"guided_json": "[]"}, "guided_json", "invalid_grammar"),
    "a long regex": ({"guided_regex": "a" * 5000}, "guided_regex", "invalid_grammar"),
    "an empty regex": ({"guided_regex": ""}, "guided_regex", "invalid_grammar"),
    "too many rules": (
        {"guided_grammar": "\n".join(f"r{i}: r{i + 1}" for i in range(4000))},
        "guided_grammar",
        "invalid_grammar",
    ),
    "a long grammar": ({"guided_grammar": 'start: "' + "x" * 20_000 + '"'}, "guided_grammar", "invalid_grammar"),
    "no choices": ({"guided_choice": []}, "guided_choice", "invalid_value"),
    "too many choices": ({"guided_choice": ["a"] * 10_001}, "guided_choice", "invalid_grammar"),
    "nothing": ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
    "two of one field": (
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        "structured_outputs.choice",
        "invalid_value",
    ),
    "two fields": (
        {"guided_regex": "a", "response_format": {"type": "json_object"}},
        "response_format",
        "invalid_value",
    ),
    "bias not for a token": ({"logit_bias": {"red": 1}}, "logit_bias", "invalid_value"),
    "bias too strong": ({"logit_bias": {"1": 101}}, "logit_bias[1]", "invalid_value"),
    "bias no number": ({"logit_bias": {"1": "5"}}, "logit_bias[1]", "invalid_type"),
    "more tokens than allowed": ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "invalid_value"),
    "negative token": ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_value"),
    "no token allowed": ({"allowed_token_ids": []}, "allowed_token_ids", "invalid_value"),
    "half a token": ({"allowed_token_ids": [1.5]}, "allowed_token_ids[0]", "invalid_type"),
    "told tokens untold": ({"logprob_token_ids": [1]}, "logprob_token_ids", "invalid_value"),
    "too many told tokens": (
        {"logprobs": True, "logprob_token_ids": [1] * 129},
        "logprob_token_ids",
        "invalid_value",
    ),
    "an empty bad word": ({"bad_words": [""]}, "bad_words[0]", "invalid_value"),
}


@pytest.mark.usefixtures("spared")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named_in_time(client, engine, name):
    fields, param, code = REFUSED[name]
    content = json.dumps(chat_body("Hello", **fields))
    started = time.perf_counter()
    response = client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert time.perf_counter() - started < 2
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert code is None or error["code"] == code
    assert engine.requests == []


def test_how_deep_a_body_and_a_schema_may_nest_is_told(client):
    for levels, told in ((33, "more than 64 levels"), (100, "at most 200 levels")):
        response = client.post("/v1/chat/completions", json=chat_body("Hello", **schema_of(nested(levels))))
        assert told in response.json()["error"]["message"]


def test_what_the_checkpoint_recommends_holds_where_the_request_says_nothing(client, engine):
    engine.recommended = {"temperature": 0.5, "repetition_penalty": 1.05}
    client.post("/v1/chat/completions", json=chat_body("Hello"))
    client.post("/v1/chat/completions", json=chat_body("Hello", temperature=1.5))
    first, second = (request.sampling for request in engine.requests)
    assert (first.temperature, first.repetition_penalty) == (0.5, 1.05)
    assert (second.temperature, second.repetition_penalty) == (1.5, 1.05)
