"""What is tried again, how long that waits, and what is raised in the end; for both clients alike."""

import asyncio
import email.utils
import json
import time

import httpx
import pytest

from covervlm import clients
from covervlm.clients import AsyncClient, Client, RetryPolicy

MODELS = {"data": [{"id": "demo", "max_model_len": 2048, "vision_tokens": 576, "keep_tokens": None}]}


def ok():
    return httpx.Response(200, json=MODELS)


def refusal(status, code=None, param=None, **headers):
    body = {"error": {"message": "No.", "type": "server_error", "param": param, "code": code}}
    return httpx.Response(status, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.fixture(params=["blocking", "asyncio"])
def models(request):
    """models(script, **client options): the call that both kinds of client make."""

    def blocking(handler, **options):
        with httpx.Client(transport=httpx.MockTransport(handler)) as http:
            return Client("http://host", http_client=http, **options).models()

    def asynchronous(handler, **options):
        async def call():
            async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
                return await AsyncClient("http://host", http_client=http, **options).models()

        return asyncio.run(call())

    return blocking if request.param == "blocking" else asynchronous


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_temporary_refusals_are_tried_again(models, script, waits, status):
    calls = script(refusal(status), refusal(status), ok())
    assert [model.id for model in models(calls)] == ["demo"]
    assert len(calls.requests) == 3
    assert 0.25 <= waits[0] <= 0.5
    assert 0.5 <= waits[1] <= 1


def test_broken_connections_are_tried_again(models, script, waits):
    calls = script(httpx.ConnectError("refused"), httpx.RemoteProtocolError("closed"), httpx.ReadError("reset"), ok())
    assert models(calls)
    assert len(waits) == 3


def test_retry_after_in_seconds_is_honoured(models, script, waits):
    models(script(refusal(503, Retry_After="7"), ok()))
    assert waits == [7]


def test_retry_after_as_a_date_is_honoured(models, script, waits):
    models(script(refusal(429, Retry_After=email.utils.formatdate(time.time() + 30, usegmt=True)), ok()))
    assert 27 < waits[0] <= 30


def test_a_retry_after_that_is_neither_falls_back_to_the_back_off(models, script, waits):
    models(script(refusal(503, Retry_After="soon"), ok()))
    assert 0.25 <= waits[0] <= 0.5


def test_a_retry_after_beyond_the_limit_is_raised_at_once_and_told(models, script, waits):
    with pytest.raises(clients.RateLimitError) as caught:
        models(script(refusal(429, Retry_After="3600")))
    assert caught.value.retry_after == 3600
    assert waits == []


def test_the_last_failure_is_raised_when_the_tries_are_used_up(models, script, waits):
    calls = script(*[refusal(503, "engine_overloaded") for _ in range(3)])
    with pytest.raises(clients.OverloadedError, match="No") as caught:
        models(calls, retries=2)
    assert (caught.value.status, caught.value.code) == (503, "engine_overloaded")
    assert len(calls.requests) == 3


def test_the_back_off_doubles_up_to_its_limit_with_jitter():
    policy = RetryPolicy(retries=2000)
    error = clients.APIConnectionError("down")
    for attempt, longest in [(0, 0.5), (1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (1999, 8)]:
        delays = [policy.delay(attempt, error) for _ in range(50)]
        assert longest / 2 <= min(delays) < max(delays) <= longest
    assert policy.delay(2000, error) is None


def test_a_timeout_is_not_tried_again(models, script, waits):
    with pytest.raises(clients.APITimeoutError):
        models(script(httpx.ReadTimeout("slow")))
    assert waits == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, clients.BadRequestError),
        (401, clients.AuthenticationError),
        (403, clients.PermissionDeniedError),
        (404, clients.NotFoundError),
        (405, clients.APIStatusError),
        (409, clients.ConflictError),
        (413, clients.PayloadTooLargeError),
        (500, clients.ServerError),
        (501, clients.ServerError),
    ],
)
def test_final_refusals_are_raised_as_the_exception_of_their_status(models, script, waits, status, kind):
    with pytest.raises(clients.APIStatusError) as caught:
        models(script(refusal(status, "some_code", "some.field", X_Request_Id="r-1")))
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.param, error.request_id) == (status, "some_code", "some.field", "r-1")
    assert waits == []


@pytest.mark.parametrize("body", [b"<html>gateway</html>", b"[]", b'{"error": "text"}', b'{"detail": 1}'])
def test_a_refusal_in_another_form_still_tells_its_status(models, script, body):
    with pytest.raises(clients.APIStatusError, match="HTTP 418") as caught:
        models(script(httpx.Response(418, content=body)))
    assert caught.value.status == 418


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"data": [{}]}', b'{"data": [7]}'])
def test_a_success_in_another_form_is_no_success(models, script, body):
    with pytest.raises(clients.ResponseFormatError, match="GET /v1/models"):
        models(script(httpx.Response(200, content=body)))


def test_key_address_and_agent_come_from_arguments(models, script):
    calls = script(ok())
    models(calls, api_key="secret")
    assert str(calls.requests[0].url) == "http://host/v1/models"
    assert calls.requests[0].headers["authorization"] == "Bearer secret"
    assert calls.requests[0].headers["user-agent"].startswith("covervlm-python/")


@pytest.mark.parametrize(
    "address", ["http://other:1234", "http://other:1234/", "http://other:1234/v1", "http://other:1234/v1/"]
)
def test_key_and_address_come_from_the_environment(script, monkeypatch, address):
    monkeypatch.setenv("COVERVLM_BASE_URL", address)
    monkeypatch.setenv("COVERVLM_API_KEY", "from-environment")
    calls = script(ok())
    with httpx.Client(transport=httpx.MockTransport(calls)) as http:
        Client(http_client=http).models()
    assert str(calls.requests[0].url) == "http://other:1234/v1/models"
    assert calls.requests[0].headers["authorization"] == "Bearer from-environment"


def test_without_a_key_no_key_is_sent_and_the_local_server_is_asked(script):
    calls = script(ok())
    with httpx.Client(transport=httpx.MockTransport(calls)) as http:
        Client(http_client=http).models()
    assert str(calls.requests[0].url) == "http://127.0.0.1:8000/v1/models"
    assert "authorization" not in calls.requests[0].headers


def test_a_base_url_without_a_scheme_is_refused():
    with pytest.raises(ValueError, match="http://"):
        Client("localhost:8000")


def test_a_key_does_not_show_in_a_client():
    client = Client("http://host", api_key="secret")
    assert "secret" not in repr(vars(client))


def test_images_on_the_web_are_fetched_without_the_key_and_embedded(script, picture):
    pruned = {"images": [{"total": 4, "kept": 1, "method": "mmtok", "coverage": 1, "milliseconds": 1}]}
    answer = httpx.Response(200, json={**pruned, "prompt_tokens": 9, "seconds": {}})
    calls = script(
        httpx.Response(302, headers={"Location": "http://web/b.png"}),
        httpx.Response(200, content=picture.read_bytes()),
        answer,
    )
    with httpx.Client(transport=httpx.MockTransport(calls)) as http:
        client = Client("http://host", api_key="secret", model="demo", http_client=http)
        client.prune("http://web/a.png", "What?")
    fetched, redirected, asked = calls.requests
    assert "authorization" not in fetched.headers
    assert "authorization" not in redirected.headers
    body = json.loads(asked.content)
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


async def test_the_async_client_fetches_images_too(script, picture):
    pruned = {"images": [{"total": 4, "kept": 1, "method": "mmtok", "coverage": 1, "milliseconds": 1}]}
    answer = httpx.Response(200, json={**pruned, "prompt_tokens": 9, "seconds": {}})
    calls = script(httpx.Response(200, content=picture.read_bytes()), answer)
    async with httpx.AsyncClient(transport=httpx.MockTransport(calls)) as http:
        await AsyncClient("http://host", api_key="secret", model="demo", http_client=http).prune(
            "https://web/a.png", "?"
        )
    assert "authorization" not in calls.requests[0].headers
    assert b"data:image/png;base64,iVBOR" in calls.requests[1].content


def test_an_image_that_is_not_there_is_an_error_of_the_argument(script):
    with httpx.Client(transport=httpx.MockTransport(script(httpx.Response(404)))) as http:
        client = Client("http://host", model="demo", http_client=http)
        with pytest.raises(ValueError, match="HTTP 404"):
            client.prune("http://web/a.png", "What?")


@pytest.mark.parametrize(
    ("url", "failure"), [("http://web/a.png", httpx.ConnectError("refused")), ("http://web/a\x00.png", None)]
)
def test_an_image_that_cannot_be_fetched_is_no_failure_of_the_server(script, url, failure):
    with httpx.Client(transport=httpx.MockTransport(script(failure))) as http:
        client = Client("http://host", model="demo", http_client=http)
        with pytest.raises(ValueError, match=r"the image at http://web/a.* cannot be fetched: "):
            client.prune(url, "What?")


def test_an_image_without_end_is_given_up(script, monkeypatch):
    monkeypatch.setattr("covervlm.clients.calls.LARGEST_DOWNLOAD", 10)
    with httpx.Client(transport=httpx.MockTransport(script(httpx.Response(200, content=b"x" * 11)))) as http:
        client = Client("http://host", model="demo", http_client=http)
        with pytest.raises(ValueError, match="more than 10 bytes"):
            client.prune("http://web/a.png", "What?")


def test_a_timeout_reaches_the_request(script):
    calls = script(ok(), httpx.Response(500))
    with httpx.Client(transport=httpx.MockTransport(calls)) as http:
        client = Client("http://host", http_client=http)
        with pytest.raises(clients.ServerError):
            client.chat(None, "Hello", timeout=3)
    assert calls.requests[1].extensions["timeout"] == {"connect": 3, "read": 3, "write": 3, "pool": 3}


SESSION = {
    "id": "s-1",
    "created": 1,
    "model": "demo-clip",
    "classes": ["a", "b"],
    "templates": ["{}"],
    "horizon": 5,
    "parameters": {},
    "observed": 0,
    "snapshot_observed": 0,
    "past_horizon": False,
}


@pytest.fixture
def client(request):
    """client(script): a blocking client of the scripted server."""
    return lambda handler: Client("http://host", http_client=httpx.Client(transport=httpx.MockTransport(handler)))


def test_all_tries_of_an_observation_carry_one_key_and_other_calls_another(client, script, waits):
    answer = {"data": [{"index": 0, "label": "a", "confidence": 1.0, "top": [{"label": "a", "probability": 1.0}]}]}
    calls = script(httpx.ReadError("reset"), refusal(503), *[httpx.Response(200, json=answer) for _ in range(2)])
    asked = client(calls)
    for _ in range(2):
        [label] = asked.streams.observe("s-1", b"picture")
        assert label == clients.Classification(0, "a", 1.0, (("a", 1.0),))
    first, second, third, other = [request.headers["idempotency-key"] for request in calls.requests]
    assert first == second == third != other


def test_what_makes_something_new_is_sent_again_only_where_it_cannot_have_begun(client, script, waits):
    calls = script(httpx.ConnectError("refused"), refusal(429), refusal(503), httpx.Response(201, json=SESSION))
    assert client(calls).streams.create(["a", "b"], 5).id == "s-1"
    assert len(waits) == 3


@pytest.mark.parametrize("step", [httpx.ReadError("reset"), refusal(502), refusal(504), refusal(408)])
@pytest.mark.parametrize("name", ["session", "clustering", "classifier", "upload", "copy"])
def test_what_makes_something_new_is_not_sent_again_where_it_may_have_begun(client, script, waits, step, name):
    make = {
        "session": lambda client: client.streams.create(["a", "b"], 5),
        "clustering": lambda client: client.cluster([b"a", b"b"], "color"),
        "classifier": lambda client: client.classifiers.fit("mine", ["a", "b"], [b"a"]),
        "upload": lambda client: client.classifiers.upload_embeddings(b"file"),
        "copy": lambda client: client.classifiers.upload("mine", b"file"),
    }[name]
    calls = script(step)
    with pytest.raises(clients.APIError):
        make(client(calls))
    assert len(calls.requests) == 1


def test_a_full_quota_is_not_asked_again(models, script, waits):
    with pytest.raises(clients.RateLimitError):
        models(script(refusal(429, "quota_exceeded")))
    assert waits == []


def test_pictures_on_the_web_reach_every_endpoint_as_files(client, script, picture):
    calls = script(httpx.Response(200, content=picture.read_bytes()), httpx.Response(200, json={"data": []}))
    client(calls).classify(["http://web/a.png", picture, "http://web/a.png"], ["a", "b"])
    fetched, asked = calls.requests
    assert str(fetched.url) == "http://web/a.png"
    images = [part["image_url"]["url"] for part in json.loads(asked.content)["images"]]
    assert len(set(images)) == 1
    assert images[0].startswith("data:image/png;base64,iVBOR")
