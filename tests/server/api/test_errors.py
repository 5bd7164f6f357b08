"""What an engine raises becomes a status and OpenAI's error schema; bugs show nothing of the inside."""

import logging

import pytest

from covervlm.server.api.errors import parameter_name
from covervlm.server.core.errors import EngineError, EngineOverloaded, EngineUnavailable, InvalidRequest
from tests.server.api.scripted import chat_body

RAISED = [
    (
        InvalidRequest("Too long.", param="messages", code="context_length_exceeded"),
        400,
        "messages",
        "context_length_exceeded",
    ),
    (EngineOverloaded("Full.", retry_after=2.2), 503, None, "engine_overloaded"),
    (EngineUnavailable("Stopping."), 503, None, "engine_unavailable"),
    (EngineError("Out of memory."), 500, None, "engine_error"),
]


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/prune"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "param", "code"), RAISED)
def test_engine_errors_have_their_status(client, engine, route, stream, error, status, param, code):
    engine.script = lambda request: [error]
    response = client.post(route, json=chat_body("Hello", stream=stream))
    assert response.status_code == status
    kind = "invalid_request_error" if status == 400 else "server_error"
    assert response.json() == {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def test_an_overloaded_server_says_when_to_come_back(client, engine):
    engine.script = lambda request: [EngineOverloaded("Full.", retry_after=2.2)]
    assert client.post("/v1/chat/completions", json=chat_body("Hello")).headers["retry-after"] == "3"


def test_an_unavailable_server_says_when_to_come_back(client, engine):
    engine.script = lambda request: [EngineUnavailable("Stopping.")]
    assert client.post("/v1/chat/completions", json=chat_body("x")).headers["retry-after"] == "5"


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_logged_by_its_request_id_and_not_told(client, engine, caplog, stream):
    engine.script = lambda request: [KeyError("/secret/path")]
    headers = {"X-Request-Id": "r7"}
    with caplog.at_level(logging.ERROR, logger="covervlm.api"):
        response = client.post("/v1/chat/completions", json=chat_body("Hello", stream=stream), headers=headers)
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "r7"
    message = "The server failed to answer; report the request's id, r7."
    assert response.json() == {
        "error": {"message": message, "type": "server_error", "param": None, "code": "internal_error"}
    }
    assert "r7" in caplog.text
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize(
    ("location", "name"),
    [
        (("temperature",), "temperature"),
        (
            ("messages", 0, "content", "<parts>", 1, "<image_url>", "image_url", "url"),
            "messages[0].content[1].image_url.url",
        ),
        (("messages", 0, "content", "<parts>", 0, "<text>", "text"), "messages[0].content[0].text"),
        (("messages", 0, "role"), "messages[0].role"),
        ((), None),
    ],
)
def test_a_location_becomes_a_path_without_the_branches_of_unions(location, name):
    assert parameter_name(location) == name
