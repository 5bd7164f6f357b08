"""/tokenize and /detokenize in vLLM's form."""

import pytest

from covervlm.server.core.generation import TemplateOptions, TextPrompt
from tests.server.api.scripted import chat_body


def test_a_text_is_tokenised(client, engine):
    answer = client.post("/tokenize", json={"model": "demo", "prompt": "Hello"}).json()
    assert answer == {"count": 10, "max_model_len": 4096, "tokens": list(range(10)), "token_strs": None}
    client.post("/tokenize", json={"model": "demo", "prompt": "Hello", "add_special_tokens": False})
    assert [request.prompt for request in engine.requests] == [TextPrompt("Hello"), TextPrompt("Hello", False)]


def test_a_chat_is_counted_as_it_is_read_after_pruning(client, engine, red_png):
    body = chat_body("Hello", red_png, vision_pruning={"keep_tokens": 64}, return_token_strs=True)
    answer = client.post("/tokenize", json=body).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) == 74
    read = client.post("/v1/prune", json=chat_body("Hello", red_png, vision_pruning={"keep_tokens": 64})).json()
    assert answer["count"] == read["prompt_tokens"]


def test_a_chat_is_written_as_the_request_says(client, engine):
    turns = {"add_generation_prompt": False, "add_special_tokens": True, "chat_template_kwargs": {"style": [1]}}
    assert client.post("/tokenize", json=chat_body("Hello", **turns)).status_code == 200
    assert engine.requests[0].template == TemplateOptions(False, False, True, {"style": [1]})


def test_ids_become_text(client):
    assert client.post("/detokenize", json={"model": "demo", "tokens": [1, 2]}).json() == {"prompt": "t1 t2"}
    assert client.post("/detokenize", json={"model": "demo", "tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "prompt": "a"}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [2**40]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1], "model": "other"}, "model"),
    ],
)
def test_what_is_wrong_is_named(client, path, body, param):
    response = client.post(path, json={"model": "demo", **body})
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param
