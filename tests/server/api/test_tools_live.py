"""The openai package runs a loop of tools against a real server over the demo model."""

import json

import openai
import pytest
from pydantic import BaseModel

from covervlm.server import create_app
from covervlm.server.demo import model_path
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.settings import Settings
from tests.server.api.live import live_server


class look_at(BaseModel):
    """Looks at a part of the picture."""

    place: str
    closely: bool


TOOLS = [openai.pydantic_function_tool(look_at)]
PLACES = {"place": {"enum": ["top", "left", "centre"]}, "closely": {"type": "boolean"}}
TOOLS[0]["function"]["parameters"]["properties"] = PLACES


@pytest.fixture(scope="module")
def client():
    settings = Settings(log_level="warning", tool_format="json")
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), threads=1))
    with live_server(create_app(settings, engine), settings) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


@pytest.fixture
def question(scene, png_url):
    picture = {"type": "image_url", "image_url": {"url": png_url(scene(1))}}
    return {"role": "user", "content": [picture, {"type": "text", "text": "What color is the star?"}]}


def test_a_picture_a_call_its_result_and_an_answer(client, question):
    ask = {"model": "demo:16", "temperature": 0, "tools": TOOLS}
    first = client.chat.completions.create(
        messages=[question], tool_choice="required", parallel_tool_calls=False, **ask
    )
    [call] = first.choices[0].message.tool_calls
    assert first.choices[0].finish_reason == "tool_calls"
    assert set(json.loads(call.function.arguments)) == set(PLACES)
    result = {"role": "tool", "tool_call_id": call.id, "content": "A red star."}
    second = client.chat.completions.create(messages=[question, first.choices[0].message, result], **ask)
    assert second.choices[0].finish_reason in ("stop", "tool_calls")
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.usage.prompt_tokens_details.image_tokens == 16


def test_the_packages_own_stream_gathers_and_parses_the_arguments(client, question):
    named = {"type": "function", "function": {"name": "look_at"}}
    ask = {"model": "demo:16", "messages": [question], "temperature": 0}
    whole = client.chat.completions.create(**ask, tools=TOOLS, tool_choice=named).choices[0].message.tool_calls[0]
    deltas = []
    with client.chat.completions.stream(**ask, tools=TOOLS, tool_choice=named) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                deltas.append(event.arguments_delta)
        final = stream.get_final_completion().choices[0]
    [call] = final.message.tool_calls
    assert final.finish_reason == "stop"
    assert len(deltas) > 2
    assert "".join(deltas) == call.function.arguments == whole.function.arguments
    assert isinstance(call.function.parsed_arguments, look_at)
