"""The demo model through the openai package: right answers, exact token counts, nobody disturbs anybody."""

import asyncio
import json
import urllib.request

import openai
import pytest
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModelForImageTextToText, AutoProcessor

from covervlm.server import create_app
from covervlm.server.demo import example_scenes, model_path
from covervlm.server.settings import Settings
from tests.server.api.live import live_server

QUESTIONS = [
    "How many objects are there?",
    "What color is the circle?",
    "Describe the image.",
    "Is there a red star?",
    "What shape is the green object?",
    "Where is the square?",
]


def outcome(answer):
    """All of an answer that must not depend on the company it had."""
    return (
        [(choice.message.content, choice.finish_reason) for choice in answer.choices],
        answer.usage,
        [{**image, "milliseconds": None} for image in answer.vision_pruning["images"]],
    )


def logprobs(answer):
    return [token.logprob for choice in answer.choices if choice.logprobs for token in choice.logprobs.content]


@pytest.mark.parametrize("pruning", [None, {"keep_tokens": 64}])
@pytest.mark.parametrize("example", example_scenes(), ids=lambda example: example.path.stem)
def test_the_example_scenes_are_answered_right(client, chat, example, pruning):
    answer = client.chat.completions.create(**chat(example.question, Image.open(example.path), pruning=pruning))
    assert answer.choices[0].message.content.strip() == example.answer
    assert answer.choices[0].finish_reason == "stop"


def test_unpruned_answers_equal_transformers_own_generate(client, chat, scene):
    model = AutoModelForImageTextToText.from_pretrained(model_path(), dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(model_path())
    for number, question in enumerate(QUESTIONS):
        inputs = processor(images=scene(number), text=f"USER: <image>\n{question} ASSISTANT:", return_tensors="pt")
        length = inputs.input_ids.shape[1]
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=40)[0, length:]
        answer = client.chat.completions.create(**chat(question, scene(number), max_tokens=40))
        assert answer.choices[0].message.content == processor.decode(ids, skip_special_tokens=True)
        assert answer.usage.prompt_tokens == length
        assert answer.usage.completion_tokens == len(ids)


def test_prompt_tokens_fall_by_exactly_512_at_64_tokens(client, chat, scene):
    full = client.chat.completions.create(**chat(QUESTIONS[0], scene(0)))
    pruned = client.chat.completions.create(**chat(QUESTIONS[0], scene(0), pruning={"keep_tokens": 64}))
    alias = client.chat.completions.create(**chat(QUESTIONS[0], scene(0), model="demo:64"))
    assert full.usage.prompt_tokens - pruned.usage.prompt_tokens == 512
    assert full.usage.prompt_tokens_details.image_tokens == 576
    assert pruned.usage.prompt_tokens_details.image_tokens == 64
    assert outcome(alias) == outcome(pruned)


@pytest.mark.parametrize(
    "pruning", [{"keep_tokens": 576}, {"keep_tokens": 10**9}, {"keep_ratio": 1.0}, {"method": "none"}]
)
def test_a_budget_for_every_token_is_the_unpruned_model(client, chat, scene, pruning):
    fields = {"logprobs": True, "top_logprobs": 3}
    full = client.chat.completions.create(**chat(QUESTIONS[2], scene(1), **fields))
    kept = client.chat.completions.create(**chat(QUESTIONS[2], scene(1), pruning=pruning, **fields))
    assert outcome(kept)[:2] == outcome(full)[:2]
    assert logprobs(kept) == logprobs(full)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pruning": {"keep_tokens": 64, "return_indices": True}},
        {"temperature": 1.2, "seed": 5, "n": 3, "max_tokens": 12, "ignore_eos": True},
        {"logprobs": True, "top_logprobs": 4, "pruning": {"keep_ratio": 0.1}},
        {"stop": ["and", ","]},
        {"max_tokens": 3},
    ],
)
def test_streaming_equals_not_streaming(client, chat, scene, fields):
    arguments = chat("Describe the image.", scene(2), **fields)
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
        logprobs = [token for c in mine if c.logprobs for token in c.logprobs.content]
        assert logprobs == (choice.logprobs.content if choice.logprobs else [])
    assert chunks[-1].usage == whole.usage
    strip = [{**image, "milliseconds": None} for image in chunks[0].vision_pruning["images"]]
    assert strip == outcome(whole)[2]


def test_a_later_turn_says_what_it_did_not_read_and_answers_as_if_it_had(client, chat, scene):
    first = chat(QUESTIONS[0], scene(0))
    with (
        live_server(create_app(Settings(threads=1, clip_model="none"))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as remembering,
    ):
        said = remembering.chat.completions.create(**first)
        turns = [{"role": "assistant", "content": said.choices[0].message.content}, {"role": "user", "content": "Why?"}]
        second = {**first, "messages": [*first["messages"], *turns]}
        got, expected = (each.chat.completions.create(**second) for each in (remembering, client))
    assert said.usage.prompt_tokens_details.cached_tokens == 0
    assert said.usage.prompt_tokens <= got.usage.prompt_tokens_details.cached_tokens < got.usage.prompt_tokens
    assert expected.usage.prompt_tokens_details.cached_tokens == 0
    assert got.choices[0].message.content == expected.choices[0].message.content


async def test_sixteen_at_once_equal_one_at_a_time(url, chat, scene):
    pruned = [
        None,
        {"keep_tokens": 64},
        {"keep_tokens": 16, "method": "uniform"},
        {"keep_ratio": 0.3, "method": "random"},
    ]
    sampled = [
        {},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.8, "top_p": 0.9, "seed": 3, "n": 2},
        {"logprobs": True},
    ]
    requests = [
        chat(
            QUESTIONS[number % len(QUESTIONS)],
            scene(number % 5),
            pruning=pruned[number % 4],
            max_tokens=4 + number,
            ignore_eos=number % 3 == 0,
            **sampled[(number // 4) % 4],
        )
        for number in range(16)
    ]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        alone = [await client.chat.completions.create(**request) for request in requests]
        together = await asyncio.gather(*(client.chat.completions.create(**request) for request in requests))
    assert [outcome(answer) for answer in together] == [outcome(answer) for answer in alone]
    for one, other in zip(together, alone, strict=True):
        # Sums of a batch are rounded in another order than those of one row.
        assert logprobs(one) == pytest.approx(logprobs(other), abs=1e-3)
    assert sum(len(logprobs(answer)) for answer in alone) > 15


def test_prune_names_the_tokens_that_a_chat_keeps(client, chat, scene, url):
    pruning = {"keep_tokens": 48, "return_indices": True}
    answer = client.chat.completions.create(**chat(QUESTIONS[1], scene(3), pruning=pruning))
    report = answer.vision_pruning["images"][0]
    arguments = chat(QUESTIONS[1], scene(3))
    body = {"model": "demo", "messages": arguments["messages"], "vision_pruning": pruning}
    preview = client.post("/prune", body=body, cast_to=object)
    assert preview["images"][0]["indices"] == report["indices"]
    assert len(report["indices"]) == 48
    assert report["indices"] == sorted(set(report["indices"]))
    assert report["grid"] == [24, 24]
    assert preview["prompt_tokens"] == answer.usage.prompt_tokens


def test_several_images_have_a_budget_each(client, chat, scene):
    answer = client.chat.completions.create(
        **chat("What is this?", scene(0), scene(1), pruning={"keep_tokens": [20, 30]})
    )
    assert [image["kept"] for image in answer.vision_pruning["images"]] == [20, 30]
    assert answer.usage.prompt_tokens_details.image_tokens == 50


@pytest.mark.parametrize("size", [(1, 1), (1, 140), (140, 1)])
@pytest.mark.parametrize("pruning", [None, {"keep_tokens": 16}])
def test_thin_images_are_answered(client, chat, size, pruning):
    answer = client.chat.completions.create(**chat("What is this?", Image.new("RGB", size, "red"), pruning=pruning))
    assert answer.usage.prompt_tokens_details.image_tokens == (16 if pruning else 576)


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1)])
def test_images_that_resizing_would_blow_up_are_refused(client, chat, size):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**chat("What is this?", Image.new("RGB", size, "red")))
    assert refused.value.code == "image_too_large"
    assert refused.value.param == "messages[0].content[0].image_url.url"


def test_text_alone_is_answered(client, chat):
    assert client.chat.completions.create(**chat("Hello", max_tokens=3)).usage.prompt_tokens_details.image_tokens == 0


def test_too_long_a_prompt_is_a_400_with_the_counts(client, chat, scene):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**chat("red " * 5000, scene(0)))
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"
    assert any(character.isdigit() for character in refused.value.message)


def gauge(url, name):
    with urllib.request.urlopen(f"{url}/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
    return next(sample.value for family in families for sample in family.samples if sample.name == name)


def test_a_client_that_leaves_frees_its_slot(client, chat, scene, url):
    before = gauge(url, "covervlm_requests_cancelled_total")
    endless = chat("Describe the image.", scene(4), max_tokens=990, ignore_eos=True, pruning={"keep_tokens": 8})
    with client.chat.completions.create(**endless, stream=True) as stream:
        next(iter(stream))
    # A request after it is answered while the abandoned one would still have run.
    while gauge(url, "covervlm_requests_cancelled_total") == before:
        client.chat.completions.create(**chat("Hello", max_tokens=1))
    assert gauge(url, "covervlm_requests_cancelled_total") == before + 1
    while gauge(url, "covervlm_num_requests_running"):
        client.chat.completions.create(**chat("Hello", max_tokens=1))


def test_the_version_names_the_engine(url):
    with urllib.request.urlopen(f"{url}/version") as response:
        assert json.load(response)["engine"] == "transformers"
