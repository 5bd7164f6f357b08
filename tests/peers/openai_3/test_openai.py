"""The openai package of the day asks about pictures."""

from typing import Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")

    color: Literal["red", "green", "blue", "yellow", "purple", "orange", "white", "black"]


@pytest.fixture(scope="module")
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="sesame", max_retries=0) as client:
        yield client


def test_a_budget_rides_in_extra_body(client, messages, scene):
    ask = {"model": "demo", "messages": messages, "temperature": 0}
    pruned = client.chat.completions.create(**ask, extra_body={"vision_pruning": {"keep_tokens": 64}})
    whole = client.chat.completions.create(**ask)
    assert pruned.choices[0].message.content.strip() == scene.answer
    assert whole.usage.prompt_tokens - pruned.usage.prompt_tokens == 512


def test_a_stream_gives_the_same_answer(client, messages, scene):
    with client.chat.completions.stream(model="demo:64", messages=messages, temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.content.strip() == scene.answer


def test_an_answer_is_parsed_into_the_type_that_is_asked_for(client, messages):
    answer = client.chat.completions.parse(model="demo:64", messages=messages, temperature=0, response_format=Shape)
    assert isinstance(answer.choices[0].message.parsed, Shape)


def test_a_response_says_what_a_chat_says(client, scene):
    picture = {"type": "input_image", "image_url": scene.picture, "detail": "auto"}
    content = [picture, {"type": "input_text", "text": scene.question}]
    answer = client.responses.create(model="demo:64", input=[{"role": "user", "content": content}], temperature=0)
    assert answer.output_text.strip() == scene.answer


def test_texts_are_embedded(client):
    answer = client.embeddings.create(model="demo-clip", input=["a red star", "a blue ring"])
    assert [sum(x * x for x in entry.embedding) for entry in answer.data] == pytest.approx([1, 1], abs=1e-4)
