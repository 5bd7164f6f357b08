"""One line per request: ids, figures, and never what was asked."""

import json
import logging

import pytest
from PIL import Image
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.api.middleware.boundary import logger
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.settings import Settings
from covervlm.server.telemetry.logs import JsonLines, TextLines
from tests.server.api.scripted import ScriptedEngine, chat_body, data_url, prompt_report

SECRET = "xylophonic-zebra-4711"
ANSWER = "aquamarine-answer-0815"


@pytest.fixture
def lines(caplog):
    """The fields of every request's line so far."""
    caplog.set_level(logging.DEBUG)
    return lambda: [record.fields for record in caplog.records if record.name == logger.name]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_one_line_with_its_figures(client, lines, red_png, stream):
    body = chat_body("Hello", red_png, red_png, vision_pruning={"keep_tokens": 64, "method": "uniform"}, stream=stream)
    client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "r7"})
    (line,) = lines()
    assert 0 < line.pop("time_to_first_token") <= line.pop("seconds")
    assert line == {
        "request_id": "r7",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "owner": "anonymou",
        "model": "demo",
        "pruning": "uniform",
        "prompt_tokens": 138,
        "generation_tokens": 3,
        "vision_tokens_before": 1152,
        "vision_tokens_after": 128,
        "finish_reason": "stop",
    }


def test_a_request_without_an_id_is_given_one_that_is_in_the_line_and_in_the_response(client, lines):
    response = client.get("/v1/models")
    assert lines()[0]["request_id"] == response.headers["x-request-id"]


def test_the_owner_is_a_prefix_of_what_the_key_is_filed_under(lines):
    with TestClient(create_app(Settings(api_key=("key-1",)), ScriptedEngine())) as client:
        client.get("/v1/models", headers={"Authorization": "Bearer key-1"})
        client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
    known, refused = lines()
    assert len(known["owner"]) == 8
    assert "owner" not in refused
    assert (refused["status"], refused["error"]) == (401, "invalid_api_key")
    assert "key-1" not in json.dumps([known, refused])


def test_refusals_and_failures_carry_the_code_that_the_caller_was_told(client, engine, lines):
    client.post("/v1/chat/completions", json=chat_body("Hello", model="other"))
    client.post("/v1/chat/completions", json={"model": "demo"})
    client.get("/nowhere/secret-path")
    engine.script = lambda request: [RuntimeError("bug")]
    client.post("/v1/chat/completions", json=chat_body("Hello"))
    seen = [(line["route"], line["status"], line["error"]) for line in lines()]
    assert seen == [
        ("/v1/chat/completions", 404, "model_not_found"),
        ("/v1/chat/completions", 400, "missing_required_parameter"),
        ("unknown", 404, "unknown_url"),
        ("/v1/chat/completions", 500, "internal_error"),
    ]


def test_a_failure_in_a_stream_shows_although_its_status_was_sent(client, engine, lines):
    engine.script = lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), RuntimeError("bug")]
    client.post("/v1/chat/completions", json=chat_body("Hello", stream=True))
    assert [(line["status"], line["error"]) for line in lines()] == [(200, "internal_error")]


def test_probes_show_at_debug_only_and_failures_as_warnings(client, engine, caplog):
    caplog.set_level(logging.DEBUG)
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        client.get(path)
    engine.script = lambda request: [RuntimeError("bug")]
    client.post("/v1/chat/completions", json=chat_body("Hello"))
    levels = [record.levelname for record in caplog.records if record.name == logger.name]
    assert levels == ["DEBUG", "DEBUG", "DEBUG", "INFO", "WARNING"]


def scripted_answer(request):
    return [GenerationChunk(0, ANSWER, 1, finish_reason="stop", prompt=prompt_report(request))]


def scripted_bug(request):
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise RuntimeError(f"cannot read {request.messages[0].text}") from error


def scripted_late_bug(request):
    return [GenerationChunk(0, ANSWER, 1, prompt=prompt_report(request)), ValueError(request.messages[0].text)]


@pytest.mark.parametrize("script", [scripted_answer, scripted_bug, scripted_late_bug])
@pytest.mark.parametrize("stream", [False, True])
def test_no_log_at_any_level_shows_question_answer_or_image(client, engine, caplog, script, stream):
    caplog.set_level(logging.DEBUG)
    engine.script = script
    picture = data_url(Image.new("RGB", (9, 7), (12, 34, 56)))
    headers = {"Authorization": "Bearer sesame-key"}
    bodies = [
        chat_body(SECRET, picture, stream=stream),
        chat_body(SECRET, picture, stream=stream, model=SECRET),
        chat_body(SECRET, f"data:image/png;base64,{SECRET}"),
        chat_body(SECRET, f"https://127.0.0.1/{SECRET}.png"),
        chat_body(SECRET, temperature=SECRET),
        chat_body(SECRET, stop=[SECRET] * 9),
        chat_body(SECRET, **{SECRET: 1}),
    ]
    for body in bodies:
        client.post("/v1/chat/completions", json=body, headers=headers)
        client.post("/v1/prune", json=body, headers=headers)
    client.post("/v1/chat/completions", content=f'{{"{SECRET}": '.encode())
    client.get(f"/{SECRET}?{SECRET}={SECRET}")
    # The test's own client tells of the URLs that it asks.
    records = [record for record in caplog.records if not record.name.startswith("httpx")]
    assert len([record for record in records if record.name == logger.name]) == 2 * len(bodies) + 2
    for formatter in (TextLines(content=False), JsonLines(content=False)):
        text = "\n".join(formatter.format(record) for record in records)
        for secret in (SECRET, ANSWER, picture[-40:], "sesame-key"):
            assert secret not in text


def test_content_is_logged_where_the_operator_asks_for_it(lines, caplog):
    engine = ScriptedEngine(scripted_late_bug)
    with TestClient(create_app(Settings(log_content=True), engine)) as client:
        client.post("/v1/chat/completions", json=chat_body(SECRET))
    (line,) = lines()
    assert line["question"] == SECRET
    assert any(SECRET in TextLines(content=True).format(record) for record in caplog.records if record.exc_info)
