"""instructor gets typed answers about a picture from the server as from OpenAI's."""

from typing import Literal

import instructor
import openai
import pytest
from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """The color of a shape."""

    # Without it the schema allows further properties, which a toy of a model never stops to write.
    model_config = ConfigDict(extra="forbid")

    color: Literal["red", "green", "blue", "yellow", "purple", "orange", "white", "black"]


@pytest.fixture(scope="module", params=[instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS])
def client(base_url, request):
    with openai.OpenAI(base_url=base_url, api_key="sesame", max_retries=0) as server:
        yield instructor.from_openai(server, mode=request.param)


def test_an_answer_about_a_picture_has_the_type_that_is_asked_for(client, messages):
    options = {"model": "demo", "messages": messages, "response_model": Shape, "temperature": 0, "max_retries": 0}
    budget = {"vision_pruning": {"keep_tokens": 64}}
    answer, raw = client.chat.completions.create_with_completion(**options, extra_body=budget)
    assert isinstance(answer, Shape)
    assert raw.usage.prompt_tokens_details.image_tokens == 64
    again = client.chat.completions.create(**options | {"model": "demo:64"})
    assert again.color == answer.color


def test_pictures_may_come_as_instructors_own_type(client, scene):
    content = [scene.question, instructor.Image.from_base64(scene.picture)]
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": content}],
        response_model=Shape,
        temperature=0,
        max_retries=0,
    )
    assert isinstance(answer, Shape)


def test_parts_of_an_answer_come_while_it_is_made(client, messages):
    parts = list(
        client.chat.completions.create_partial(
            model="demo:64", messages=messages, response_model=Shape, temperature=0, max_retries=0
        )
    )
    whole = client.chat.completions.create(
        model="demo:64", messages=messages, response_model=Shape, temperature=0, max_retries=0
    )
    assert parts[-1].color == whole.color
