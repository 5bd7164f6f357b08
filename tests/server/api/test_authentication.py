"""Every route needs a key where there are keys, except for probes and the page; keys have their own limits."""

import asyncio
import threading

import openai
import pytest
from PIL import Image
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.settings import Settings
from tests.server.api.authentication_routes import OPEN, every_route
from tests.server.api.live import live_server
from tests.server.api.scripted import ScriptedEngine, chat_body, data_url, prompt_report

CHAT = "/v1/chat/completions"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def app(engine=None, **settings):
    return create_app(
        Settings(**{"api_key": ("one", "two"), "clip_model": "demo"} | settings), engine or ScriptedEngine()
    )


def refused(response, status=401):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return error


def test_every_route_of_the_api_but_the_probes_needs_a_key():
    application = app()
    client = TestClient(application)
    found = every_route(application)
    assert {path for _, path in found} >= {*application.openapi()["paths"], "/openapi.json", *OPEN}
    for method, path in [*found, ("GET", "/nowhere"), ("POST", "/"), ("POST", "/ui/x")]:
        for headers in ({}, bearer("three"), {"Authorization": "one"}, {"Authorization": "Basic one"}, bearer("")):
            response = client.request(method, path, headers=headers)
            if path in OPEN and method == "GET":
                assert response.status_code != 401
            else:
                assert response.headers["www-authenticate"] == "Bearer"
                if path.startswith("/v1/messages"):
                    assert response.json()["error"]["type"] == "authentication_error"
                else:
                    assert refused(response)["code"] == "invalid_api_key", (method, path)


def test_the_page_and_its_files_are_open():
    client = TestClient(app())
    assert client.get("/").status_code == 200
    assert client.get("/ui/app.js").status_code == 200


@pytest.mark.parametrize("header", ["Bearer one", "bearer one", "BEARER  two "])
def test_any_accepted_key_is_let_in(header):
    assert TestClient(app()).get("/v1/models", headers={"Authorization": header}).status_code == 200


def test_without_keys_nobody_is_asked():
    assert TestClient(app(api_key=())).get("/v1/models").status_code == 200


def test_a_body_is_not_read_for_a_caller_without_a_key():
    engine = ScriptedEngine()
    response = TestClient(app(engine, max_body_bytes=10)).post(CHAT, content=b"x" * 1000)
    assert refused(response)["code"] == "invalid_api_key"
    assert engine.requests == []


def test_the_openai_client_authenticates_unchanged():
    with live_server(app()) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="one", max_retries=0) as client:
            assert client.models.list().data[0].id == "demo"
        stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="three", max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError) as wrong:
            stranger.models.list()
    assert wrong.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("settings", "key", "status"),
    [
        ({"metrics_token": "m"}, "m", 200),
        ({"metrics_token": "m"}, "one", 401),
        ({"metrics_token": "m"}, "", 401),
        ({"metrics_token": "m", "api_key": ()}, "", 401),
        ({}, "one", 200),
        ({}, "m", 401),
    ],
)
@pytest.mark.parametrize("path", ["/metrics", "/v1/forecast"])
def test_measures_of_the_whole_server_need_their_own_token_or_else_a_key(path, settings, key, status):
    assert TestClient(app(**settings)).get(path, headers=bearer(key)).status_code == status


def test_the_metrics_token_opens_nothing_else():
    refused(TestClient(app(metrics_token="m")).get("/v1/models", headers=bearer("m")))


def test_images_of_two_keys_never_share_a_digest():
    engine = ScriptedEngine()
    client = TestClient(app(engine))
    body = chat_body("x", data_url(Image.new("RGB", (2, 2), "red")))
    for key in ("one", "one", "two"):
        assert client.post(CHAT, json=body, headers=bearer(key)).status_code == 200
    digests = [request.images[0].digest for request in engine.requests]
    assert digests[0] == digests[1] != digests[2]


def test_one_key_never_sees_anothers_resources(tmp_path):
    with TestClient(app(data_dir=tmp_path)) as client:
        body = {"classes": ["red", "blue"], "horizon": 5}
        session = client.post("/v1/streams", json=body, headers=bearer("one")).json()["id"]
        path = f"/v1/streams/{session}"
        assert client.get(path, headers=bearer("one")).status_code == 200
        assert client.get(path, headers=bearer("two")).status_code == 404
        assert client.get("/v1/streams", headers=bearer("two")).json()["data"] == []


def test_too_many_requests_of_a_key_are_a_429_that_says_when(red_png):
    client = TestClient(app(key_requests_per_minute=2))
    for _ in range(2):
        assert client.get("/v1/models", headers=bearer("one")).status_code == 200
    response = client.get("/v1/models", headers=bearer("one"))
    assert refused(response, 429)["code"] == "rate_limit_exceeded"
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert client.get("/v1/models", headers=bearer("two")).status_code == 200
    assert client.get("/health").status_code == 200


def test_images_of_a_key_are_counted_over_its_requests(red_png):
    engine = ScriptedEngine()
    client = TestClient(app(engine, key_images_per_minute=3))
    assert client.post(CHAT, json=chat_body("x", red_png, red_png), headers=bearer("one")).status_code == 200
    response = client.post(CHAT, json=chat_body("x", red_png, red_png), headers=bearer("one"))
    assert refused(response, 429)["code"] == "rate_limit_exceeded"
    assert response.headers["retry-after"] == "20"
    assert client.post(CHAT, json=chat_body("no image"), headers=bearer("one")).status_code == 200
    assert client.post(CHAT, json=chat_body("x", red_png), headers=bearer("two")).status_code == 200
    assert len(engine.requests) == 3


def test_requests_at_once_are_counted_until_their_last_byte():
    reached, opened = threading.Event(), threading.Event()

    class Engine(ScriptedEngine):
        async def generate(self, request):
            yield GenerationChunk(0, "a", 1, prompt=prompt_report(request))
            reached.set()
            await asyncio.to_thread(opened.wait, 20)
            yield GenerationChunk(0, "b", 1, finish_reason="stop")

    with live_server(app(Engine(), key_concurrent_requests=1)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="one", max_retries=0)
        other = openai.OpenAI(base_url=f"{url}/v1", api_key="two", max_retries=0)
        stream = client.chat.completions.create(**chat_body("x"), stream=True)
        assert reached.wait(20)
        with pytest.raises(openai.RateLimitError) as limited:
            client.models.list()
        assert limited.value.response.headers["retry-after"] == "1"
        assert other.models.list().data
        opened.set()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "ab"
        assert client.models.list().data


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere"])
def test_answers_carry_security_headers(path):
    headers = TestClient(app()).get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ((), "https://app.test", False),
        (("https://app.test",), "https://app.test", True),
        (("https://app.test",), "https://evil.test", False),
    ],
)
def test_pages_of_other_origins_may_call_only_where_they_are_named(origins, origin, allowed):
    client = TestClient(app(cors_origins=origins))
    preflight = client.options(CHAT, headers={**PREFLIGHT, "Origin": origin})
    answer = client.get("/v1/models", headers={"Origin": origin, **bearer("one")})
    assert preflight.headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert (preflight.status_code == 200) is allowed


def test_no_secret_ever_shows(tmp_path, caplog):
    """Not in logs, metrics, errors or the settings' own words, whether it is right or wrong."""
    secrets = {"key": "key-quite-secret", "token": "token-quite-secret", "agent": "agent-quite-secret"}
    settings = Settings(
        api_key=secrets["key"],
        metrics_token=secrets["token"],
        agent_api_key=secrets["agent"],
        agent_url="http://127.0.0.1:9/v1",
        clip_model="demo",
        data_dir=tmp_path,
        log_level="debug",
    )
    application = create_app(settings, ScriptedEngine(lambda request: [RuntimeError("a bug")]))
    shown = [repr(settings), str(settings), settings.model_dump_json()]
    pruned = {"guide": "agent", "keep_tokens": 5}
    body = chat_body("x", data_url(Image.new("RGB", (2, 2))), vision_pruning=pruned)
    with caplog.at_level("DEBUG"), TestClient(application) as client:
        for secret in (*secrets.values(), "another-quite-secret"):
            for method, path in every_route(application):
                answer = client.request(method, path, headers={**bearer(secret), "X-Api-Key": secret})
                shown.append(answer.text + str(answer.headers))
            shown.append(client.post(CHAT, json=body, headers=bearer(secret)).text)
    shown += [record.getMessage() + str(record.exc_text) for record in caplog.records]
    assert "internal_error" in "".join(shown)
    assert not [text for text in shown if "quite-secret" in text]
