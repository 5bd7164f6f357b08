"""Every parameter of OpenAI's chat completions is taken, ignored on purpose, or refused by name."""

import typing
from pathlib import Path

import pytest
from openai.types.chat import completion_create_params as openai_params

from covervlm.server.api.wire import fields
from covervlm.server.api.wire.chat_request import ChatCompletionRequest, Unless
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import SamplingParams
from tests.server.api.scripted import chat_body

DOCS = Path(__file__).parents[3] / "docs" / "chat-fields.md"
_VLLM = """
    messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
    presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice
    reasoning_effort thinking_token_budget include_reasoning parallel_tool_calls user use_beam_search top_k
    min_p repetition_penalty watermarking length_penalty ignore_eos spaces_between_special_tokens
    truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids allowed_token_ids echo
    add_generation_prompt continue_final_message add_special_tokens documents chat_template chat_template_kwargs
    media_io_kwargs mm_processor_kwargs priority request_id session_id return_tokens_as_token_ids
    return_token_ids routed_experts_prompt_start return_token_offsets return_prompt_text mm_payload
    return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection
    stream_interval best_of
"""
VLLM = _VLLM.split()
"""vLLM 0.32's fields, but for those of sampling and structured output that are in no table here yet."""

TOOLS = [{"type": "function", "function": {"name": "f"}}]
TAKEN: dict[str, object] = {
    "frequency_penalty": 0.5,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 5,
    "max_tokens": 5,
    "n": 1,
    "parallel_tool_calls": True,
    "presence_penalty": 0.5,
    "reasoning_effort": "high",
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    "seed": 1,
    "stop": ["END"],
    "stream": False,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "temperature": 0.5,
    "tool_choice": "required",
    "tools": TOOLS,
    "top_logprobs": 2,
    "top_p": 0.5,
}
NEEDS = {
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
    "tool_choice": {"tools": TOOLS},
    "tools": {"tool_choice": "required"},
}
IGNORED: dict[str, object] = {
    "metadata": {"team": "a"},
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
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "prediction": {"type": "content", "content": "x"},
    "store": True,
    "verbosity": "low",
    "web_search_options": {},
}
NEUTRAL: dict[str, object] = {
    "function_call": "none",
    "functions": [],
    "modalities": ["text"],
    "store": False,
    "verbosity": "medium",
}


def test_every_parameter_of_the_openai_package_has_its_place():
    official = typing.get_type_hints(openai_params.CompletionCreateParamsStreaming)
    assert set(official) == {"messages", "model", *TAKEN, *IGNORED, *REFUSED}


def test_every_field_of_openai_and_vllm_is_in_the_documented_table():
    assert fields.table(fields.CHAT) in DOCS.read_text()
    assert {*openai_params.CompletionCreateParamsStreaming.__annotations__, *VLLM} <= set(
        ChatCompletionRequest.model_fields
    )


@pytest.mark.parametrize("name", [*VLLM, "guided_json", "anything_else"])
def test_null_is_as_good_as_absent_under_every_name(client, name):
    if name not in ("messages", "model"):
        assert client.post("/v1/chat/completions", json=chat_body("Hello", **{name: None})).status_code == 200


MARKED = {
    name: mark
    for name, field in ChatCompletionRequest.model_fields.items()
    for mark in field.metadata
    if isinstance(mark, Unless)
}


@pytest.mark.parametrize("name", MARKED)
def test_what_the_table_calls_neutral_is_accepted_and_all_else_is_refused_by_name(client, engine, name):
    for value in MARKED[name].neutral:
        assert client.post("/v1/chat/completions", json=chat_body("Hello", **{name: value})).status_code == 200
    response = client.post("/v1/chat/completions", json=chat_body("Hello", **{name: {"other": 17}}))
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
HISTORIES = {
    "calls without content": [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
    "calls and results": [
        {"role": "assistant", "tool_calls": [CALL], "refusal": None, "audio": None, "function_call": None},
        {"role": "tool", "tool_call_id": "c1", "content": "blue"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "blue"}]},
    ],
    "a refusal": [{"role": "assistant", "content": None, "refusal": "I cannot."}],
    "an empty answer": [{"role": "assistant", "content": "", "tool_calls": [], "reasoning_content": "hm"}],
}


@pytest.mark.parametrize("kind", HISTORIES)
def test_a_legal_history_reaches_the_engine(client, engine, kind):
    user = {"role": "user", "content": "What colour?"}
    response = client.post("/v1/chat/completions", json={"model": "demo", "messages": [user, *HISTORIES[kind], user]})
    assert response.status_code == 200, response.text
    first = engine.requests[0].messages[1]
    assert first.text == (HISTORIES[kind][0].get("refusal") or "")
    if "calls" in kind:
        assert [(call.id, call.name, call.arguments) for call in first.tool_calls] == [("c1", "look", '{"at": "sky"}')]
    if "results" in kind:
        assert [(m.role, m.text, m.tool_call_id) for m in engine.requests[0].messages[2:4]] == [
            ("tool", "blue", "c1"),
            ("tool", "blue", "c2"),
        ]


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
    instead = "; how many frames to a second are taken of a video is said by 'fps' in its 'video_url'"
    assert error["message"] == (
        f"'{name}' is not supported by this server{instead if name == 'media_io_kwargs' else ''}."
    )
    assert engine.requests == []


@pytest.mark.parametrize("name", REFUSED)
def test_null_or_a_value_that_asks_for_nothing_is_accepted(client, name):
    values = [None, *([NEUTRAL[name]] if name in NEUTRAL else [])]
    for value in values:
        assert client.post("/v1/chat/completions", json=chat_body("Hello", **{name: value})).status_code == 200


VLLM: dict[str, object] = {
    "allowed_token_ids": [3, 5],
    "bad_words": ["circle"],
    "ebnf": 'root ::= "a"',
    "grammar": 'root ::= "a"',
    "json_schema": {"type": "object"},
    "regex": "a+",
    "guided_choice": ["a", "b"],
    "guided_grammar": 'start: "a"',
    "guided_json": {"type": "object"},
    "guided_regex": "a+",
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "min_p": 0.1,
    "min_tokens": 2,
    "repetition_penalty": 1.1,
    "skip_special_tokens": False,
    "stop_token_ids": [3],
    "structured_outputs": {"regex": "a+"},
    "top_k": 3,
}


@pytest.mark.parametrize("name", VLLM)
def test_vllms_extensions_are_taken(client, engine, name):
    body = chat_body("Hello", **{name: VLLM[name]})
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    [request] = engine.requests
    assert request.sampling != SamplingParams()


@pytest.mark.parametrize("name", [*TAKEN, *IGNORED, *VLLM, "vision_pruning"])
def test_null_means_absent(client, name):
    assert client.post("/v1/chat/completions", json=chat_body("Hello", **{name: None})).status_code == 200


def beyond(request):
    try:
        return request.token_limit(10, 20)
    except InvalidRequest as error:
        return [error]


USER = [{"role": "user", "content": "Hello"}]
LIMITS = {
    "max_tokens": ("/v1/chat/completions", {"messages": USER}),
    "max_completion_tokens": ("/v1/chat/completions", {"messages": USER}),
    "max_output_tokens": ("/v1/responses", {"input": "Hello"}),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_beyond_the_context_is_named_as_the_caller_names_it(client, engine, name, stream):
    engine.script = beyond
    path, body = LIMITS[name]
    response = client.post(path, json={"model": "demo", **body, name: 100, "stream": stream})
    told = response.json()["error"]
    assert (response.status_code, told["param"], told["code"]) == (400, name, "context_length_exceeded")
    assert f"'{name}' is 100, and may be 10 at most" in told["message"]
