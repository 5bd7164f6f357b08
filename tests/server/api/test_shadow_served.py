"""--shadow over HTTP: responses are what they are without it, and only the metrics tell of it."""

import logging
import re
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine, chat_body, red_circle


def shadowed(share=1.0, **settings):
    return TestClient(create_app(Settings(shadow=share, clip_model="none", **settings), ScriptedEngine()))


def samples(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def compared(client, count):
    """The metrics once so many answers were compared."""
    end = time.monotonic() + 30
    while (seen := samples(client))["covervlm_shadow_requests_total", "compared"] < count:
        assert time.monotonic() < end
    return seen


def asked(path, url, **fields):
    body = chat_body("What?", url, vision_pruning={"keep_tokens": 64}, **fields)
    if path == "/v1/responses":
        content = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": url}]
        body = {k: v for k, v in body.items() if k != "messages"} | {"input": [{"role": "user", "content": content}]}
    if path == "/v1/messages":
        source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
        body["messages"][0]["content"][0] = {"type": "image", "source": source}
        body["max_tokens"] = 9
    return body


def same_but_for_names(text):
    """An answer without the ids and times that differ from one to the next."""
    return re.sub(
        r'(chatcmpl-|msg_|resp_|"created(_at)?":)\w+', "", re.sub(r'"(seconds|\w+_seconds)":[^,}]+', "", text)
    )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "events"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_responses_are_the_same_with_and_without(red_png, path, stream):
    body = asked(path, red_png, stream=stream)
    told = []
    for share in (0.0, 1.0):
        with shadowed(share) as client:
            response = client.post(path, json=body)
            assert response.status_code == 200, response.text
            told.append(same_but_for_names(response.text))
            if share:
                compared(client, 1)
    assert told[0] == told[1]


def test_metrics_tell_of_the_comparison_and_count_it_as_no_request(red_png):
    with shadowed() as client:
        for pruning in ({"keep_tokens": 64}, {"keep_tokens": 63}, {"method": "none"}):
            client.post("/v1/chat/completions", json=chat_body("What?", red_png, vision_pruning=pruning, n=2))
        client.post("/v1/chat/completions", json=chat_body("No picture"))
        seen = compared(client, 2)
    for budget in ("64", "other"):
        labels = tuple(sorted((budget, "mmtok")))
        assert seen["covervlm_shadow_answers_total", *labels] == 1
        assert seen["covervlm_shadow_exact_answers_total", *labels] == 0
        assert seen["covervlm_shadow_tokens_total", *labels] == 3
        assert seen["covervlm_shadow_agreeing_tokens_total", *labels] == 2
        assert seen["covervlm_shadow_first_divergence_tokens_sum", *labels] == 1
        for model in ("pruned", "unpruned"):
            assert seen["covervlm_shadow_nats_total", *sorted((*labels, model))] == 1.5
    assert seen["covervlm_prompt_tokens_total",] == 10 * 4 + 64 + 63 + 576
    assert seen["covervlm_time_to_first_token_seconds_count",] == 4
    assert seen["covervlm_http_requests_total", "/v1/chat/completions", "200"] == 4
    assert (seen["covervlm_shadow_waiting",], seen["covervlm_shadow_bytes",], seen["covervlm_inflight_bytes",]) == (
        0,
        0,
        0,
    )


def test_nothing_is_measured_where_it_is_off(client):
    assert not any(name.startswith("covervlm_shadow") for name, *_ in samples(client))


def test_limits_of_a_key_do_not_see_it_and_logs_say_nothing_of_an_answer(red_png, caplog):
    caplog.set_level(logging.DEBUG)
    with shadowed(
        api_key=("sesame",), key_requests_per_minute=2, key_images_per_minute=2, metrics_token="scrape"
    ) as client:
        client.headers["Authorization"] = "Bearer sesame"
        body = chat_body("What on earth?", red_png, vision_pruning={"keep_tokens": 64})
        assert [client.post("/v1/chat/completions", json=body).status_code for _ in range(2)] == [200, 200]
        client.headers["Authorization"] = "Bearer scrape"
        assert compared(client, 2)["covervlm_shadow_requests_total", "failed"] == 0
    assert "on earth" not in caplog.text
    assert "circle" not in caplog.text


def test_whoever_waits_for_any_answer_is_waited_for_and_who_looks_on_is_not():
    engine = ScriptedEngine()
    seen = []
    engine.script = lambda request: seen.append(list(engine.present)) or red_circle(request)
    with TestClient(create_app(Settings(shadow=1.0, clip_model="none"), engine)) as client:
        client.get("/v1/models")
        client.post("/tokenize", json={"prompt": "Hello"})
        client.post("/v1/chat/completions", json=chat_body("Hello"))
        client.post("/v1/chat/completions", content=b"not JSON")
    assert seen == [["came", "went", "came"]]
    assert engine.present == ["came", "went"] * 3
