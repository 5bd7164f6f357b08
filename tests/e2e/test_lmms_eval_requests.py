"""Requests as lmms-eval 0.7.3 sends them to an OpenAI-compatible server."""

import base64
import io

import openai
import pytest

SUFFIX = "\nAnswer the question using a single word or phrase."


@pytest.fixture
def request_of(scene):
    def build(model: str, question: str) -> dict:
        buffer = io.BytesIO()
        scene(0).save(buffer, format="PNG")
        picture = base64.b64encode(buffer.getvalue()).decode("utf-8")
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "text", "text": question + SUFFIX},
        ]
        return {
            "messages": [{"role": "user", "content": content}],
            "model": model,
            "max_tokens": 16,
            "temperature": 0,
            "top_p": 1.0,
            "seed": 1234,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "n": 1,
        }

    return build


def test_a_budget_in_the_models_name_prunes(client, request_of):
    full = client.chat.completions.create(**request_of("demo", "Which color does the star have?"))
    pruned = client.chat.completions.create(**request_of("demo:64", "Which color does the star have?"))
    assert full.usage.prompt_tokens - pruned.usage.prompt_tokens == 512
    assert pruned.choices[0].message.content
    assert pruned.usage.completion_tokens > 0


def test_the_fixed_suffix_does_not_guide_the_selection(client, request_of):
    def kept(question: str) -> list[int]:
        body = request_of("demo:64", question) | {"extra_body": {"vision_pruning": {"return_indices": True}}}
        return client.chat.completions.create(**body).vision_pruning["images"][0]["indices"]

    with_suffix = kept("Where is the blue square?")
    without = request_of("demo:64", "Where is the blue square?")
    without["messages"][0]["content"][1]["text"] = "Where is the blue square?"
    answer = client.chat.completions.create(**without, extra_body={"vision_pruning": {"return_indices": True}})
    assert with_suffix == answer.vision_pruning["images"][0]["indices"]


def test_the_extra_fields_of_its_video_mode_are_refused_by_name(client, request_of):
    body = request_of("demo", "What is it?") | {"extra_body": {"media_io_kwargs": {"video": {"num_frames": 4}}}}
    with pytest.raises(openai.BadRequestError, match="media_io_kwargs"):
        client.chat.completions.create(**body)
