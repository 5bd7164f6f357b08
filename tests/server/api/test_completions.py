"""/v1/completions: OpenAI's shapes by the openai package's own types, and what prompts may be."""

import json
import typing
from dataclasses import replace

import pytest
from openai.types import Completion
from openai.types import completion_create_params as openai_params

from covervlm.server.api.wire.completion_request import CompletionRequest
from covervlm.server.core.errors import EngineUnavailable
from covervlm.server.core.generation import GenerationChunk, TextPrompt
from tests.server.api.scripted import logprob, prompt_report


def post(client, **fields):
    return client.post("/v1/completions", json={"model": "demo", "prompt": "Hello", **fields})


def events(client, **fields):
    lines = post(client, stream=True, **fields).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_every_parameter_of_the_openai_package_has_its_place(client):
    official = typing.get_type_hints(openai_params.CompletionCreateParamsStreaming)
    assert set(official) <= set(CompletionRequest.model_fields)
    for name in official.keys() - {"model", "prompt"}:
        assert post(client, **{name: None}).status_code == 200


def test_an_answer_has_openais_shape(client):
    answer = post(client, n=2, logprobs=1).json()
    parsed = Completion.model_validate(answer, strict=True)
    assert [choice.text for choice in parsed.choices] == ["a red circle"] * 2
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens) == (10, 6)
    assert parsed.choices[0].logprobs.tokens == ["a", " red", " circle"]
    assert parsed.choices[0].logprobs.text_offset == [0, 1, 5]
    assert parsed.choices[0].logprobs.top_logprobs[1] == {" red": -0.25}
    assert parsed.system_fingerprint == answer["system_fingerprint"]


PROMPTS = {
    "a text": ("Hello", ["Hello"]),
    "texts": (["a", "b"], ["a", "b"]),
    "ids": ([1, 2], [(1, 2)]),
    "lists of ids": ([[1, 2], [3]], [(1, 2), (3,)]),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_prompt_may_be_texts_or_ids_and_each_is_a_request(client, engine, kind):
    prompt, expected = PROMPTS[kind]
    answer = post(client, prompt=prompt, n=2, echo=True).json()
    assert [request.prompt for request in engine.requests] == [TextPrompt(one) for one in expected]
    assert len({request.request_id for request in engine.requests}) == len(expected)
    shown = [one if isinstance(one, str) else " ".join(f"t{i}" for i in one) for one in expected]
    texts = [f"{one}a red circle" for one in shown for _ in range(2)]
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate(texts))
    assert answer["usage"]["prompt_tokens"] == 10 * len(expected)


@pytest.mark.parametrize("side", ["left", "right", None])
def test_a_prompt_is_cut_where_the_request_says(client, engine, side):
    """To its last tokens, as vLLM does, where it does not say."""
    assert post(client, truncate_prompt_tokens=4, truncation_side=side).status_code == 200
    assert engine.requests[-1].prompt == TextPrompt("Hello", limit=4, from_start=side == "right")


def test_what_a_request_does_not_say_is_openais(client, engine):
    post(client)
    post(client, max_tokens=5, add_special_tokens=False, top_k=3, guided_choice=["a"])
    usual, own = engine.requests
    assert (usual.sampling.max_tokens, usual.sampling.logprobs, usual.prompt.special_tokens) == (16, False, True)
    assert (own.sampling.max_tokens, own.sampling.top_k, own.sampling.grammar.kind) == (5, 3, "choice")
    assert own.prompt.special_tokens is False


FIELDS = [
    {},
    {"prompt": ["Hello", "there"], "n": 2},
    {"logprobs": 2, "echo": True, "prompt": ["Hello"]},
    {"echo": True, "prompt": [[1, 2], [3]], "logprobs": 0, "return_token_ids": True},
    {"echo": True, "max_tokens": 0, "logprobs": 1},
]


@pytest.mark.parametrize("fields", FIELDS)
def test_streaming_equals_not_streaming(client, fields):
    whole = post(client, **fields).json()
    chunks = events(client, stream_options={"include_usage": True}, **fields)
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        for name in choice["logprobs"] or ():
            assert [one for c in mine for one in c["logprobs"][name]] == choice["logprobs"][name]
        for name in {"token_ids", "prompt_token_ids"} & set(choice):
            assert (choice[name] is not None) == bool(fields.get("return_token_ids"))
            assert [one for c in mine for one in c.get(name, [])] == (choice[name] or [])
    assert chunks[-1] | {"usage": 0} == chunks[0] | {"choices": [], "usage": 0}
    assert chunks[-1]["usage"] == whole["usage"]
    assert {json.dumps(chunk["usage"]) for chunk in chunks[:-1]} == {"null"}


def test_an_echoed_prompt_comes_with_its_log_probabilities(client):
    text = "".join(f"t{i} " for i in range(10))
    [choice] = post(client, prompt=text, echo=True, logprobs=2).json()["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == [None, *[-1.5] * 9, *[-0.25] * 3]
    assert logprobs["top_logprobs"][:2] == [None, {"t1 ": -1.5, "x0": -0.5, "x1": -0.5}]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)


def test_an_echo_alone_generates_nothing(client):
    answer = post(client, echo=True, max_tokens=0, logprobs=0).json()
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"], len(choice["logprobs"]["tokens"])) == ("Hello", "length", 10)
    assert answer["usage"]["completion_tokens"] == 0


def test_prompt_logprobs_have_vllms_form(client):
    [choice] = post(client, prompt_logprobs=1, return_token_ids=True).json()["choices"]
    assert choice["prompt_logprobs"][:2] == [
        None,
        {
            "1": {"logprob": -1.5, "rank": 7, "decoded_token": "t1 "},
            "90": {"logprob": -0.5, "rank": 1, "decoded_token": "x0"},
        },
    ]
    assert choice["prompt_token_ids"] == list(range(10))
    assert choice["token_ids"] == [100, 101, 102]


REFUSED = {
    "no prompt": ({"prompt": None}, "prompt"),
    "an empty list": ({"prompt": []}, "prompt"),
    "an empty list of ids": ({"prompt": [[1], []]}, "prompt[1]"),
    "a mixed list": ({"prompt": ["a", 1]}, "prompt[1]"),
    "an object": ({"prompt": {"text": "a"}}, "prompt"),
    "a negative id": ({"prompt": [1, -1]}, "prompt[1]"),
    "too many prompts": ({"prompt": ["a"] * 129}, "prompt"),
    "a suffix": ({"suffix": "b"}, "suffix"),
    "several of the best": ({"best_of": 2}, "best_of"),
    "nothing to do": ({"max_tokens": 0}, "max_tokens"),
    "too many alternatives": ({"logprobs": 21}, "logprobs"),
    "streamed prompt logprobs": ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    "another model": ({"model": "other"}, "model"),
    "cut to nothing": ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    "cut on no side": ({"truncation_side": "middle"}, "truncation_side"),
    "cut and echoed": ({"truncate_prompt_tokens": 4, "echo": True}, "truncate_prompt_tokens"),
    "too many tokens to begin with": ({"min_tokens": 20}, "min_tokens"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_named(client, engine, kind):
    fields, param = REFUSED[kind]
    response = post(client, **fields)
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param
    assert engine.requests == []


def test_one_prompt_that_is_refused_ends_the_others(client, engine):
    def script(request):
        if request.prompt.content == "bad":
            return [EngineUnavailable("The server is stopping.")]
        return [GenerationChunk(0, "a", 1, prompt=prompt_report(request))]

    engine.script = script
    response = post(client, prompt=["good", "bad", "good"])
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert len(engine.released) == len(engine.requests)


def test_told_tokens_take_the_place_of_the_likeliest(client, engine):
    def script(request):
        assert request.sampling.logprob_token_ids == (5, 6, 7)
        top = tuple(replace(logprob(f"t{i}", -float(i)), id=i) for i in (5, 6, 7, 9))
        entry = replace(logprob("t9", -9.0, *top), id=9)
        return [GenerationChunk(0, "t9", 1, (entry,), "stop", prompt_report(request), (9,))]

    engine.script = script
    asked = {"logprobs": 1, "logprob_token_ids": [5, 6, 7], "return_tokens_as_token_ids": True}
    [choice] = client.post("/v1/completions", json={"prompt": "Hello", **asked}).json()["choices"]
    assert set(choice["logprobs"]["top_logprobs"][0]) == {"token_id:5", "token_id:6", "token_id:7", "token_id:9"}
    refused = client.post("/v1/completions", json={"prompt": "Hello", "logprob_token_ids": [5]})
    assert refused.json()["error"]["param"] == "logprob_token_ids"
