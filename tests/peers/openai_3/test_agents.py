"""OpenAI's Agents SDK runs a loop of two tools about a picture, over chats and over responses, whole and streamed."""

import asyncio

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)

set_tracing_disabled(True)  # it would send what it saw to OpenAI


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel])
def model(base_url, request):
    client = openai.AsyncOpenAI(base_url=base_url, api_key="sesame", max_retries=0)
    return request.param(model="demo:16", openai_client=client)


@pytest.fixture
def asked(scene):
    content = [{"type": "input_image", "image_url": scene.picture, "detail": "auto"}]
    return [{"role": "user", "content": [*content, {"type": "input_text", "text": scene.question}]}]


@pytest.fixture
def called():
    return []


@pytest.fixture
def agent(model, called):
    """Has to call `see`, then `tell`, whose result ends the loop: the demo model would not choose."""

    @function_tool(is_enabled=lambda *_: not called)
    def see(closely: bool) -> str:
        """Looks at it."""
        called.append("see")
        return "A star."

    @function_tool(is_enabled=lambda *_: bool(called))
    def tell(sure: bool) -> str:
        """Tells it."""
        called.append("tell")
        return f"told {sure}"

    return Agent(
        name="looker",
        model=model,
        tools=[see, tell],
        model_settings=ModelSettings(tool_choice="required", temperature=0),
        reset_tool_choice=False,
        tool_use_behavior={"stop_at_tool_names": ["tell"]},
    )


def check(result, called):
    assert called == ["see", "tell"]
    assert [item.type for item in result.new_items] == ["tool_call_item", "tool_call_output_item"] * 2
    assert result.final_output.startswith("told ")


def test_a_loop_of_two_tools_about_a_picture(agent, asked, called):
    check(asyncio.run(Runner.run(agent, asked, max_turns=3)), called)


def test_the_same_loop_streamed(agent, asked, called):
    async def loop():
        result = Runner.run_streamed(agent, asked, max_turns=3)
        async for _ in result.stream_events():
            pass
        return result

    check(asyncio.run(loop()), called)
