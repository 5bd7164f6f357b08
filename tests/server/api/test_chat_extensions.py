"""vLLM's extensions of a chat: how the template is told, echo, token ids and log probabilities of the prompt."""

import pytest
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.core.generation import TemplateOptions
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine, chat_body
from tests.server.api.test_chat_stream import events


def post(client, **fields):
    return client.post("/v1/chat/completions", json=chat_body("Hello", **fields))


def continued(**fields):
    body = chat_body("Hello", continue_final_message=True, **fields)
    body["messages"].append({"role": "assistant", "content": [{"type": "text", "text": "It is "}]})
    return body


TOLD = {
    "nothing": ({}, TemplateOptions()),
    "no answer begins": ({"add_generation_prompt": False}, TemplateOptions(add_generation_prompt=False)),
    "an answer begins": ({"add_generation_prompt": True, "continue_final_message": False}, TemplateOptions()),
    "an answer goes on": ({"continue_final_message": True}, TemplateOptions(False, True)),
    "special tokens": ({"add_special_tokens": True}, TemplateOptions(special_tokens=True)),
    "variables": (
        {"chat_template_kwargs": {"enable_thinking": False, "tags": ["a", {"b": None}]}},
        TemplateOptions(variables={"enable_thinking": False, "tags": ["a", {"b": None}]}),
    ),
}


@pytest.mark.parametrize("kind", TOLD)
def test_the_engine_hears_how_to_write_a_chat(client, engine, kind):
    fields, expected = TOLD[kind]
    assert post(client, **fields).status_code == 200
    assert engine.requests[0].template == expected


nested: list = []
for _ in range(6):
    nested = [nested]
VARIABLES = {
    "no object": [1],
    "a name of the template's own": {"messages": []},
    "an argument of what applies it": {"tokenize": True},
    "a special token": {"bos_token": "x"},
    "no name": {"a b": 1},
    "an empty name": {"": 1},
    "too many": {f"v{i}": 1 for i in range(65)},
    "a long text": {"a": "x" * 5000},
    "a long name": {"a" * 5000: 1},
    "a long list": {"a": [0] * 5000},
    "a huge number": {"a": 10**4000},
    "too deep": {"a": nested},
}


@pytest.mark.parametrize("kind", VARIABLES)
def test_variables_are_bounded(client, engine, kind):
    response = post(client, chat_template_kwargs=VARIABLES[kind])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "chat_template_kwargs"
    assert engine.requests == []


def test_a_chat_can_not_begin_an_answer_and_go_on_with_one(client):
    error = post(client, continue_final_message=True, add_generation_prompt=True).json()["error"]
    assert (error["param"], error["code"]) == ("add_generation_prompt", "invalid_value")


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_puts_the_continued_message_before_the_answer(client, stream):
    for body, text in (
        (continued(echo=True, n=2), "It is a red circle"),
        (continued(echo=False, n=2), "a red circle"),
        (chat_body("Hello", echo=True, n=2), "a red circle"),
        (chat_body("Hello", echo=True, add_generation_prompt=False, n=2), "Helloa red circle"),
    ):
        if stream:
            deltas = [choice for chunk in events(client, body) for choice in chunk["choices"]]
            texts = ["".join(c["delta"].get("content", "") for c in deltas if c["index"] == i) for i in range(2)]
        else:
            choices = client.post("/v1/chat/completions", json=body).json()["choices"]
            texts = [choice["message"]["content"] for choice in choices]
        assert texts == [text] * 2


def test_token_ids_come_whole_and_by_events(client):
    whole = post(client, return_token_ids=True).json()
    assert whole["prompt_token_ids"] == list(range(10))
    assert whole["choices"][0]["token_ids"] == [100, 101, 102]
    chunks = events(client, chat_body("Hello", return_token_ids=True))
    assert [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk] == [list(range(10))]
    assert [i for chunk in chunks for c in chunk["choices"] for i in c.get("token_ids", [])] == [100, 101, 102]
    assert not {"prompt_token_ids", "prompt_logprobs"} & set(post(client).json())


def test_prompt_logprobs_have_vllms_form(client):
    logprobs = post(client, prompt_logprobs=0).json()["prompt_logprobs"]
    assert logprobs[:2] == [None, {"1": {"logprob": -1.5, "rank": 7, "decoded_token": "t1 "}}]
    assert len(logprobs) == 10
    assert post(client, prompt_logprobs=1, stream=True).json()["error"]["param"] == "prompt_logprobs"


def test_tokens_may_be_named_by_their_ids(client):
    content = post(client, logprobs=True, return_tokens_as_token_ids=True).json()["choices"][0]["logprobs"]["content"]
    assert {entry["token"].partition(":")[0] for entry in content} == {"token_id"}
    assert bytes(content[0]["bytes"]) == b"a"


def fingerprint(**settings):
    with TestClient(create_app(Settings(clip_model="none", **settings), ScriptedEngine())) as client:
        return post(client).json()["system_fingerprint"]


def test_the_fingerprint_follows_the_configuration_and_nothing_else():
    assert fingerprint() == fingerprint() == fingerprint(max_images=3)
    assert len({fingerprint(), fingerprint(keep_tokens=64), fingerprint(method="random")}) == 3
