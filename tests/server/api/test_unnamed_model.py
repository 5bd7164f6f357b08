"""A request that names no model means the one that is served, as vLLM, SGLang and llama.cpp take it."""

import pytest

from tests.server.api.scripted import chat_body

CHAT = {name: value for name, value in chat_body("Hello").items() if name != "model"}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": CHAT | {"max_tokens": 8},
    "/v1/prune": CHAT,
    "/v1/messages/count_tokens": CHAT,
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [1]},
}


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": ""}])
@pytest.mark.parametrize("path", BODIES)
def test_the_served_model_answers_under_its_name(client, path, model):
    response = client.post(path, json=BODIES[path] | model)
    assert response.status_code == 200, response.text
    assert response.json().get("model", "demo") == "demo"
