"""A chat completion as one JSON body, checked by the openai package's own types."""

import pytest
from openai.types.chat import ChatCompletion

from covervlm.server.core.generation import GenerationChunk, PruningPolicy, SamplingParams
from tests.server.api.scripted import chat_body, prompt_report


def complete(client, body):
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_answer_is_openais_object_in_every_field(client, red_png):
    answer = complete(client, chat_body("What is it?", red_png, vision_pruning={"keep_tokens": 64}))
    parsed = ChatCompletion.model_validate(answer, strict=True)
    assert parsed.id.startswith("chatcmpl-")
    assert (parsed.object, parsed.model) == ("chat.completion", "demo")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "a red circle", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert set(parsed.model_extra) == {"vision_pruning"}


def test_usage_counts_what_the_language_model_read(client, red_png):
    full = complete(client, chat_body("What?", red_png))["usage"]
    pruned = complete(client, chat_body("What?", red_png, vision_pruning={"keep_tokens": 64}))["usage"]
    assert full["prompt_tokens"] - pruned["prompt_tokens"] == 512
    assert pruned == {
        "prompt_tokens": 74,
        "completion_tokens": 3,
        "total_tokens": 77,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 64, "text_tokens": 10},
    }


def test_the_pruning_report_tells_of_every_image_in_reading_order(client, red_png):
    body = chat_body("Which?", red_png, red_png, vision_pruning={"keep_tokens": [3, 5], "return_indices": True})
    report = complete(client, body)["vision_pruning"]
    assert [(image["total"], image["kept"], image["method"]) for image in report["images"]] == [
        (576, 3, "mmtok"),
        (576, 5, "mmtok"),
    ]
    assert report["images"][1]["indices"] == [0, 1, 2, 3, 4]
    assert report["images"][1]["grid"] == [24, 24]
    assert report["images"][1]["box"] == [0, 0, 96, 96]
    assert report["images"][0]["coverage"] == 0.5
    assert report["images"][0]["milliseconds"] == 1.25
    assert set(report["seconds"]) == {"media", "queue", "preprocess", "tower", "selection", "prefill"}
    assert report["seconds"]["media"] > 0
    assert report["seconds"]["prefill"] == 0.005


def test_indices_stay_out_of_the_report_unless_asked_for(client, red_png):
    image = complete(client, chat_body("What?", red_png, vision_pruning={"keep_tokens": 3}))["vision_pruning"][
        "images"
    ][0]
    assert "indices" not in image
    assert "grid" not in image
    assert "box" not in image


def test_a_request_without_images_has_no_pruning_report(client):
    answer = complete(client, chat_body("Hello"))
    assert "vision_pruning" not in answer
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 0


def test_a_request_of_an_image_alone_is_answered(client, red_png, engine):
    complete(client, chat_body(None, red_png))
    assert len(engine.requests[0].images) == 1
    assert engine.requests[0].messages[0].text == ""


def test_n_choices_come_in_order_and_their_tokens_add_up(client, engine):
    def interleaved(request):
        return [
            GenerationChunk(1, "second", 2, (), "length", prompt_report(request)),
            GenerationChunk(0, "fir", 1),
            GenerationChunk(0, "st", 1, (), "stop"),
        ]

    engine.script = interleaved
    answer = complete(client, chat_body("Hello", n=2))
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in answer["choices"]] == [
        (0, "first", "stop"),
        (1, "second", "length"),
    ]
    assert answer["usage"]["completion_tokens"] == 4


def test_log_probabilities_are_openais_and_finite(client):
    answer = complete(client, chat_body("Hello", logprobs=True, top_logprobs=2))
    parsed = ChatCompletion.model_validate(answer, strict=True)
    tokens = parsed.choices[0].logprobs.content
    assert [token.token for token in tokens] == ["a", " red", " circle"]
    assert bytes(tokens[1].bytes) == b" red"
    assert tokens[0].logprob == -0.25
    assert [(top.token, top.logprob) for top in tokens[0].top_logprobs] == [("a", -0.25), ("x", -9999.0)]


def test_fields_reach_the_engine_in_its_terms(client, engine):
    complete(
        client,
        chat_body(
            "Hello",
            max_completion_tokens=7,
            max_tokens=9,
            temperature=0,
            top_p=0.5,
            top_k=-1,
            min_p=0.1,
            repetition_penalty=1.1,
            presence_penalty=-1,
            frequency_penalty=2,
            seed=11,
            stop="END",
            n=2,
            logprobs=True,
            top_logprobs=1,
            ignore_eos=True,
        ),
    )
    assert engine.requests[0].sampling == SamplingParams(
        max_tokens=7,
        temperature=0,
        top_p=0.5,
        top_k=0,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=2,
        seed=11,
        stop=("END",),
        n=2,
        logprobs=True,
        top_logprobs=1,
        ignore_eos=True,
    )


def test_absent_and_null_fields_mean_openais_defaults(client, engine):
    complete(client, chat_body("Hello"))
    complete(client, chat_body("Hello", temperature=None, stop=None, n=None, max_tokens=None, vision_pruning=None))
    assert engine.requests[0].sampling == engine.requests[1].sampling == SamplingParams()
    assert engine.requests[0].pruning == engine.requests[1].pruning == PruningPolicy()


def test_max_tokens_serves_where_max_completion_tokens_is_absent(client, engine):
    complete(client, chat_body("Hello", max_tokens=9))
    assert engine.requests[0].sampling.max_tokens == 9


def test_messages_keep_their_roles_and_the_order_of_their_parts(client, engine, red_png):
    messages = [
        {"role": "developer", "content": "Be short."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "before"}, {"type": "image_url", "image_url": {"url": red_png}}],
        },
        {"role": "assistant", "content": "ok", "refusal": None, "annotations": [], "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    complete(client, {"model": "demo", "messages": messages})
    sent = engine.requests[0].messages
    assert [message.role for message in sent] == ["system", "user", "assistant", "user"]
    assert [message.text for message in sent] == ["Be short.", "before", "ok", "a\nb"]
    assert sent[1].content[1].image.getpixel((0, 0)) == (255, 0, 0)


def test_an_answer_can_be_sent_back_as_it_came(client):
    first = complete(client, chat_body("Hello"))["choices"][0]["message"]
    messages = [{"role": "user", "content": "Hello"}, first, {"role": "user", "content": "And then?"}]
    complete(client, {"model": "demo", "messages": messages})


@pytest.mark.parametrize("stream", [False, True])
def test_the_request_id_comes_back_and_reaches_the_engine(client, engine, stream):
    headers = {"X-Request-Id": "trace-42"}
    response = client.post("/v1/chat/completions", json=chat_body("Hello", stream=stream), headers=headers)
    assert response.headers["x-request-id"] == "trace-42"
    assert engine.requests[0].request_id == "trace-42"


@pytest.mark.parametrize("unfit", ["", "x" * 129, "a b", "a\tb"])
def test_an_unfit_request_id_is_replaced(client, unfit):
    first, second = (
        client.post("/v1/chat/completions", json=chat_body("Hello"), headers={"X-Request-Id": unfit}).headers[
            "x-request-id"
        ]
        for _ in range(2)
    )
    assert unfit not in (first, second)
    assert first != second
