"""Every bad request gets its status and OpenAI's error schema, with the field named, and reaches no engine."""

import base64
import json

import pytest
from PIL import Image
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.scripted import chat_body, data_url

PIXEL = data_url(Image.new("RGB", (1, 1)))
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
JSON = {"Content-Type": "application/json"}


def message(content, role="user"):
    return {"model": "demo", "messages": [{"role": role, "content": content}]}


def image(url):
    return message([{"type": "image_url", "image_url": {"url": url}}])


def pruning(**fields):
    return chat_body("Hello", vision_pruning=fields)


IMAGE_URL = "messages[0].content[0].image_url.url"
KEEP = "vision_pruning.keep_tokens"

BAD = {
    "no messages": ({"model": "demo", "messages": []}, "messages", "invalid_value"),
    "messages missing": ({"model": "demo"}, "messages", "missing_required_parameter"),
    "messages no list": ({"model": "demo", "messages": "hi"}, "messages", "invalid_type"),
    "model no string": ({**message("x"), "model": 5}, "model", "invalid_type"),
    "role unknown": (message("x", "boss"), "messages[0].role", "invalid_value"),
    "role missing": (
        {"model": "demo", "messages": [{"content": "x"}]},
        "messages[0].role",
        "missing_required_parameter",
    ),
    "role of a function": (message("x", "function"), "messages[0].role", "invalid_value"),
    "calls by a user": (
        {"model": "demo", "messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
        "messages[0].tool_calls",
        "invalid_value",
    ),
    "content missing": (
        {"model": "demo", "messages": [{"role": "user"}]},
        "messages[0].content",
        "missing_required_parameter",
    ),
    "content null": (message(None), "messages[0].content", "missing_required_parameter"),
    "content empty": (message([]), "messages[0].content", "invalid_value"),
    "content a number": (message(5), "messages[0].content", "invalid_type"),
    "part no object": (message(["x"]), "messages[0].content[0]", "invalid_type"),
    "part without type": (message([{"text": "x"}]), "messages[0].content[0]", "invalid_type"),
    "part with a stray field": (
        message([{"type": "text", "text": "x", "image_url": {"url": PIXEL}}]),
        "messages[0].content[0].image_url",
        "unknown_parameter",
    ),
    "part of audio": (
        message([{"type": "input_audio", "input_audio": {}}]),
        "messages[0].content[0]",
        "unsupported_parameter",
    ),
    "part of a file": (message([{"type": "file", "file": {}}]), "messages[0].content[0]", "unsupported_parameter"),
    "text a number": (message([{"type": "text", "text": 5}]), "messages[0].content[0].text", "invalid_type"),
    "text half a surrogate pair": (message("\ud800"), None, "invalid_json"),
    "image without url": (message([{"type": "image_url", "image_url": {}}]), IMAGE_URL, "missing_required_parameter"),
    "image url a number": (image(5), IMAGE_URL, "invalid_type"),
    "image by an assistant": (
        message([{"type": "image_url", "image_url": {"url": PIXEL}}], "assistant"),
        "messages[0].content",
        "invalid_value",
    ),
    "image at a web address": (image("https://127.0.0.1/a.png"), IMAGE_URL, "invalid_image_url"),
    "image at a file": (image("file:///etc/passwd"), IMAGE_URL, "invalid_image"),
    "image empty": (image("data:image/png;base64,"), IMAGE_URL, "invalid_image"),
    "image url empty": (image(""), IMAGE_URL, "invalid_image"),
    "image of broken base64": (image("data:image/png;base64,@@@@"), IMAGE_URL, "invalid_image"),
    "image that is text": (
        image("data:image/png;base64," + base64.b64encode(b"hello world").decode()),
        IMAGE_URL,
        "invalid_image",
    ),
    "second image bad": (chat_body("x", PIXEL, "nonsense"), "messages[0].content[1].image_url.url", "invalid_image"),
    "budget negative": (pruning(keep_tokens=-1), KEEP, "invalid_value"),
    "budget zero": (pruning(keep_tokens=0), KEEP, "invalid_value"),
    "budget a word": (pruning(keep_tokens="many"), KEEP, "invalid_value"),
    "budget a fraction": (pruning(keep_tokens=1.5), KEEP, "invalid_value"),
    "budget true": (pruning(keep_tokens=True), KEEP, "invalid_value"),
    "budget list empty": (pruning(keep_tokens=[]), KEEP, "invalid_value"),
    "budget list too long": (chat_body("x", PIXEL, vision_pruning={"keep_tokens": [5, 6]}), KEEP, "invalid_value"),
    "ratio zero": (pruning(keep_ratio=0), "vision_pruning.keep_ratio", "invalid_value"),
    "ratio above one": (pruning(keep_ratio=1.01), "vision_pruning.keep_ratio", "invalid_value"),
    "ratio a word": (pruning(keep_ratio="half"), "vision_pruning.keep_ratio", "invalid_type"),
    "coverage above one": (pruning(coverage=2), "vision_pruning.coverage", "invalid_value"),
    "two budgets": (pruning(keep_tokens=64, keep_ratio=0.5), "vision_pruning", "invalid_value"),
    "bound without coverage": (pruning(keep_tokens=64, min_tokens=5), "vision_pruning", "invalid_value"),
    "bounds crossed": (pruning(coverage=0.9, min_tokens=5, max_tokens=4), "vision_pruning", "invalid_value"),
    "method unknown": (pruning(method="magic", keep_tokens=5), "vision_pruning.method", "invalid_value"),
    "guide unknown": (pruning(guide="stars"), "vision_pruning.guide", "invalid_value"),
    "pruning field unknown": (pruning(keep=5), "vision_pruning.keep", "unknown_parameter"),
    "pruning no object": (chat_body("x", vision_pruning=64), "vision_pruning", "invalid_type"),
    "field unknown": (chat_body("x", max_token=5), "max_token", "unknown_parameter"),
    "message field unknown": (
        {"model": "demo", "messages": [{"role": "user", "content": "x", "mood": 1}]},
        "messages[0].mood",
        "unknown_parameter",
    ),
    "max_tokens zero": (chat_body("x", max_tokens=0), "max_tokens", "invalid_value"),
    "max_tokens a string": (chat_body("x", max_tokens="5"), "max_tokens", "invalid_type"),
    "temperature too high": (chat_body("x", temperature=2.1), "temperature", "invalid_value"),
    "temperature negative": (chat_body("x", temperature=-0.1), "temperature", "invalid_value"),
    "top_p above one": (chat_body("x", top_p=1.1), "top_p", "invalid_value"),
    "top_k below minus one": (chat_body("x", top_k=-2), "top_k", "invalid_value"),
    "penalty too high": (chat_body("x", presence_penalty=2.5), "presence_penalty", "invalid_value"),
    "repetition penalty zero": (chat_body("x", repetition_penalty=0), "repetition_penalty", "invalid_value"),
    "n zero": (chat_body("x", n=0), "n", "invalid_value"),
    "seed beyond 64 bits": (chat_body("x", seed=2**63), "seed", "invalid_value"),
    "stop empty": (chat_body("x", stop=""), "stop", "invalid_value"),
    "five stops": (chat_body("x", stop=list("abcde")), "stop", "invalid_value"),
    "top_logprobs alone": (chat_body("x", top_logprobs=3), "top_logprobs", "invalid_value"),
    "too many top_logprobs": (chat_body("x", logprobs=True, top_logprobs=21), "top_logprobs", "invalid_value"),
    "stream_options alone": (chat_body("x", stream_options={"include_usage": True}), "stream_options", "invalid_value"),
    "stream a string": (chat_body("x", stream="yes"), "stream", "invalid_type"),
}


def error_of(response, status):
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert response.headers["x-request-id"]
    return body["error"]


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/prune"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_a_400_that_names_the_field(client, engine, name, route):
    body, param, code = BAD[name]
    error = error_of(client.post(route, content=json.dumps(body), headers=JSON), 400)
    assert (error["param"], error["code"]) == (param, code)
    assert engine.requests == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("field", ["temperature", "top_p", "vision_pruning.keep_ratio", "vision_pruning.coverage"])
def test_numbers_that_json_does_not_know_are_refused(client, engine, field, number):
    head, _, leaf = field.partition(".")
    value = f'{{"{leaf}": {number}}}' if leaf else number
    text = f'{{"model": "demo", "messages": [{{"role": "user", "content": "x"}}], "{head}": {value}}}'
    error = error_of(client.post("/v1/chat/completions", content=text, headers=JSON), 400)
    assert (error["param"], error["code"]) == (field, "invalid_value")
    assert engine.requests == []


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b'{"model": ', JSON),
        (b"", JSON),
        (b"null", JSON),
        (b"[]", JSON),
        (b'"text"', JSON),
        (b"\xff\xfe", JSON),
        (b"[" * 100_000, JSON),
        (b'{"seed": ' + b"9" * 5000 + b"}", JSON),
        (b'{"model": "demo"}', {"Content-Type": "text/plain"}),
        (b'{"model": "demo"}', {}),
    ],
)
def test_a_body_that_is_no_json_object_is_a_400(client, content, headers):
    error = error_of(client.post("/v1/chat/completions", content=content, headers=headers), 400)
    assert (error["param"], error["code"]) == (None, "invalid_json")


def test_a_field_name_that_utf8_cannot_spell_is_refused_politely(client):
    text = '{"model": "demo", "messages": [{"role": "user", "content": "x"}], "\\ud800": 1}'
    error = error_of(client.post("/v1/chat/completions", content=text, headers=JSON), 400)
    assert error["code"] == "invalid_json"


@pytest.mark.parametrize("budget", [10**9, 2**31, 2**63, 10**30])
def test_a_budget_beyond_every_image_is_fine(client, red_png, budget):
    response = client.post("/v1/chat/completions", json=chat_body("x", red_png, vision_pruning={"keep_tokens": budget}))
    assert response.json()["vision_pruning"]["images"][0]["kept"] == 576


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1)])
def test_the_thinnest_images_are_fine(client, engine, size):
    assert client.post("/v1/chat/completions", json=chat_body("x", data_url(Image.new("RGB", size)))).status_code == 200
    assert engine.requests[0].images[0].image.size == size


@pytest.mark.parametrize("name", ["gpt-4o", "Demo", "demo:", "demo:0", "demo:-1", "demo:many", "demo:1e3", "demo:٣"])
def test_a_model_that_is_not_served_is_a_404(client, engine, name):
    error = error_of(client.post("/v1/chat/completions", json={**message("x"), "model": name}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert name in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_a_url_that_is_not_in_an_object_is_told_where_it_belongs(client, red_png, kind):
    body = {"messages": [{"role": "user", "content": [{"type": kind, kind: red_png}]}]}
    error = error_of(client.post("/v1/chat/completions", json=body), 400)
    assert (error["param"], error["code"]) == (f"messages[0].content[0].{kind}", "invalid_type")
    assert 'an object that holds the URL, {"url": "data:..."}' in error["message"]


@pytest.mark.parametrize("text", ["\\ud83d", "\\ud83d x", "\\ude00"])
def test_half_a_character_is_told_apart_from_other_broken_json(client, text):
    body = '{"messages": [{"role": "user", "content": "' + text + '"}]}'
    error = error_of(client.post("/v1/chat/completions", content=body, headers=JSON), 400)
    assert error["message"].endswith("are halves of a character and come in pairs.")


def test_an_unknown_route_is_a_404(client):
    error = error_of(client.post("/v1/images/generations", json={}), 404)
    assert error["code"] == "unknown_url"
    assert error["message"] == (
        "Invalid URL (POST /v1/images/generations); GET /openapi.json lists the paths of this server."
    )


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions", "/v1/chat/completions/"])
def test_a_base_url_without_v1_or_with_two_is_told_the_path(client, path):
    message = error_of(client.post(path, json={}), 404)["message"]
    assert f"(POST {path}); is it /v1/chat/completions?" in message


def test_a_wrong_method_is_a_405_that_says_what_is_allowed(client):
    response = client.get("/v1/chat/completions")
    error = error_of(response, 405)
    assert error["code"] == "method_not_supported"
    assert error["message"].endswith("does not accept GET requests; send POST.")
    assert response.headers["allow"] == "POST"


def limited(engine, **limits):
    return TestClient(create_app(Settings(**limits), engine))


def test_more_images_than_allowed_are_a_400(engine, red_png):
    client = limited(engine, max_images=2)
    assert client.post("/v1/chat/completions", json=chat_body("x", red_png, red_png)).status_code == 200
    error = error_of(client.post("/v1/chat/completions", json=chat_body("x", *[red_png] * 3)), 400)
    assert (error["param"], error["code"]) == ("messages", "too_many_images")
    assert "3" in error["message"]
    assert "2" in error["message"]


@pytest.mark.parametrize("limit", [{"max_image_bytes": 50}, {"max_image_pixels": 47}])
def test_an_image_over_a_limit_is_a_400(engine, red_png, limit):
    error = error_of(limited(engine, **limit).post("/v1/chat/completions", json=chat_body("x", red_png)), 400)
    assert (error["param"], error["code"]) == (IMAGE_URL, "image_too_large")
    assert engine.requests == []


def test_remote_images_can_be_turned_off(engine):
    url = "https://images.test/a.png"
    error = error_of(limited(engine, remote_media=False).post("/v1/chat/completions", json=chat_body("x", url)), 400)
    assert (error["param"], error["code"]) == (IMAGE_URL, "invalid_image")
    assert "does not fetch images" in error["message"]


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_a_413_whether_its_length_is_declared_or_not(engine, declared):
    client = limited(engine, max_body_bytes=1000)
    content = b" " * 1001
    sent = content if declared else iter([content[:600], content[600:]])
    response = client.post("/v1/chat/completions", content=sent, headers=JSON)
    assert "1000 bytes" in error_of(response, 413)["message"]
    assert client.post("/v1/chat/completions", content=b" " * 1000, headers=JSON).status_code == 400
