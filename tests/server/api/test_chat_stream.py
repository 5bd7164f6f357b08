"""A chat completion as server-sent events, checked by the openai package's own types."""

import json

import pytest
from openai.types.chat import ChatCompletionChunk

from covervlm.server.core.errors import EngineUnavailable
from covervlm.server.core.generation import GenerationChunk
from tests.server.api.scripted import chat_body, prompt_report


def events(client, body):
    """The data of every event, [DONE] left out but required."""
    response = client.post("/v1/chat/completions", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_deltas_have_openais_shape(client):
    chunks = events(client, chat_body("Hello"))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        assert set(chunk) == {"id", "object", "created", "model", "system_fingerprint", "choices"}
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert [chunk["choices"][0] for chunk in chunks] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        },
        {"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": " red"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": " circle"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"},
    ]


def test_usage_is_null_but_in_a_last_event_without_choices(client, red_png):
    chunks = events(client, chat_body("Hello", red_png, stream_options={"include_usage": True}))
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    last = ChatCompletionChunk.model_validate(chunks[-1], strict=True)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (586, 3)


def test_continuous_usage_counts_the_tokens_of_every_event(client, red_png):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(client, chat_body("Hello", red_png, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 1, 2, 3, 3, 3]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {586}
    lone = events(client, chat_body("Hello", red_png, stream_options={"continuous_usage_stats": True}))
    assert not any("usage" in chunk for chunk in lone)


def test_the_first_event_alone_carries_the_pruning_report(client, red_png):
    chunks = events(client, chat_body("Hello", red_png, vision_pruning={"keep_tokens": 64}))
    assert chunks[0]["vision_pruning"]["images"][0]["kept"] == 64
    assert chunks[0]["vision_pruning"]["seconds"]["tower"] == 0.003
    assert all("vision_pruning" not in chunk for chunk in chunks[1:])


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"logprobs": True, "top_logprobs": 2}])
def test_streaming_equals_not_streaming(client, red_png, fields):
    body = chat_body("Hello", red_png, vision_pruning={"keep_tokens": 64, "return_indices": True}, **fields)
    whole = client.post("/v1/chat/completions", json=body).json()
    chunks = events(client, {**body, "stream_options": {"include_usage": True}})
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        logprobs = [token for c in mine if c["logprobs"] for token in c["logprobs"]["content"]]
        assert logprobs == (choice["logprobs"]["content"] if choice["logprobs"] else [])
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[0]["vision_pruning"]["images"] == whole["vision_pruning"]["images"]


def test_tokens_that_show_no_character_yet_make_no_event(client, engine):
    def half_characters(request):
        return [
            GenerationChunk(0, "", 1, prompt=prompt_report(request)),
            GenerationChunk(0, "", 1),
            GenerationChunk(0, "é", 1, finish_reason="length"),
        ]

    engine.script = half_characters
    chunks = events(client, chat_body("Hello", stream_options={"include_usage": True}))
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[:-1]] == ["", "é", None]
    assert chunks[-1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (EngineUnavailable("The server is stopping."), "The server is stopping."),
        (RuntimeError("secret path /x"), "The server failed to answer; report the request's id, r1."),
    ],
)
def test_a_failure_on_the_way_is_the_last_event_and_no_done_follows(client, engine, error, message):
    engine.script = lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), error]
    body = chat_body("Hello", stream=True)
    response = client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "r1"})
    last = response.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == message
    assert "[DONE]" not in response.text
    assert "secret" not in response.text


def test_a_refusal_before_the_first_token_is_a_plain_response_with_its_status(client, engine):
    engine.script = lambda request: [EngineUnavailable("The server is stopping.")]
    response = client.post("/v1/chat/completions", json=chat_body("Hello", stream=True))
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["code"] == "engine_unavailable"
