"""Every parameter of OpenAI's chat completions is taken, ignored on purpose, or refused by name."""

import typing

import pytest
from openai.types.chat import completion_create_params as openai_params

from tests.server.api.scripted import chat_body

TAKEN: dict[str, object] = {
    "frequency_penalty": 0.5,
    "logprobs": True,
    "max_completion_tokens": 5,
    "max_tokens": 5,
    "n": 1,
    "presence_penalty": 0.5,
    "seed": 1,
    "stop": ["END"],
    "stream": False,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "temperature": 0.5,
    "top_logprobs": 2,
    "top_p": 0.5,
}
NEEDS = {"top_logprobs": {"logprobs": True}, "stream_options": {"stream": True}}
IGNORED: dict[str, object] = {
    "metadata": {"team": "a"},
    "parallel_tool_calls": True,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "u",
    "service_tier": "auto",
    "user": "u",
}
REFUSED: dict[str, object] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "logit_bias": {"50256": -100},
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    "store": True,
    "tool_choice": "auto",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "verbosity": "low",
    "web_search_options": {},
}
NEUTRAL: dict[str, object] = {
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "modalities": ["text"],
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "store": False,
    "tool_choice": "none",
    "tools": [],
    "verbosity": "medium",
}


def test_every_parameter_of_the_openai_package_has_its_place():
    official = typing.get_type_hints(openai_params.CompletionCreateParamsStreaming)
    assert set(official) == {"messages", "model", *TAKEN, *IGNORED, *REFUSED}


@pytest.mark.parametrize("name", [*TAKEN, *IGNORED])
def test_it_is_accepted(client, name):
    value = {**TAKEN, **IGNORED}[name]
    body = chat_body("Hello", **{name: value}, **NEEDS.get(name, {}))
    assert client.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize("name", IGNORED)
def test_what_is_ignored_changes_nothing(client, engine, name):
    client.post("/v1/chat/completions", json=chat_body("Hello"))
    client.post("/v1/chat/completions", json=chat_body("Hello", **{name: IGNORED[name]}))
    plain, labelled = engine.requests
    assert (plain.messages, plain.sampling, plain.pruning) == (labelled.messages, labelled.sampling, labelled.pruning)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(client, engine, name):
    response = client.post("/v1/chat/completions", json=chat_body("Hello", **{name: REFUSED[name]}))
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert error["message"] == f"'{name}' is not supported by this server."
    assert engine.requests == []


@pytest.mark.parametrize("name", REFUSED)
def test_null_or_a_value_that_asks_for_nothing_is_accepted(client, name):
    values = [None, *([NEUTRAL[name]] if name in NEUTRAL else [])]
    for value in values:
        assert client.post("/v1/chat/completions", json=chat_body("Hello", **{name: value})).status_code == 200


@pytest.mark.parametrize(
    "name", [*TAKEN, *IGNORED, "vision_pruning", "top_k", "min_p", "repetition_penalty", "ignore_eos"]
)
def test_null_means_absent(client, name):
    assert client.post("/v1/chat/completions", json=chat_body("Hello", **{name: None})).status_code == 200
