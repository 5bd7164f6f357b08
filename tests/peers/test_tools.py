"""Frameworks of agents call functions about a picture and go on with what they return, as they do with OpenAI's."""

import json

import litellm
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

MODEL = "demo:16"
"""The demo's context is short: functions and turns need the room of an unpruned picture."""


@tool
def look(closely: bool) -> str:
    """Looks at it."""
    return "A star."


@tool
def wait(seconds: bool) -> str:
    """Waits."""
    return "Done."


@pytest.fixture
def chat(base_url):
    return ChatOpenAI(model=MODEL, base_url=base_url, api_key="sesame", temperature=0, max_retries=0)


def test_langchain_binds_tools_and_goes_on_with_their_results(chat, messages):
    asked = [HumanMessage(content=messages[0]["content"])]
    called = chat.bind_tools([look, wait], tool_choice="any", parallel_tool_calls=False).invoke(asked)
    [call] = called.tool_calls
    assert called.invalid_tool_calls == []
    assert call["name"] in ("look", "wait")
    result = {"look": look, "wait": wait}[call["name"]].invoke(call)
    assert isinstance(result, ToolMessage)
    answer = chat.bind_tools([look, wait]).invoke([*asked, called, result])
    assert answer.usage_metadata["input_tokens"] > called.usage_metadata["input_tokens"]


def test_langchain_streams_the_same_call(chat, messages):
    bound = chat.bind_tools([look, wait], tool_choice="look")
    asked = [HumanMessage(content=messages[0]["content"])]
    whole = bound.invoke(asked)
    gathered = None
    for chunk in bound.stream(asked):
        gathered = chunk if gathered is None else gathered + chunk
    assert [(c["name"], c["args"]) for c in gathered.tool_calls] == [(c["name"], c["args"]) for c in whole.tool_calls]
    assert whole.tool_calls[0]["name"] == "look"


def test_litellm_takes_calls(base_url, messages):
    parameters = {"type": "object", "properties": {"closely": {"type": "boolean"}}, "required": ["closely"]}
    tools = [{"type": "function", "function": {"name": "look", "parameters": parameters}}]
    answer = litellm.completion(
        f"hosted_vllm/{MODEL}", messages, tools=tools, tool_choice="required", api_base=base_url, api_key="sesame"
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "look"
    assert isinstance(json.loads(call.function.arguments)["closely"], bool)


def test_an_agent_of_langchain_runs_a_loop_of_two_tools_about_a_picture(chat, messages):
    """The demo model has to call each in turn, and the loop ends with what the second returns."""
    called = []

    @tool
    def see(closely: bool) -> str:
        """Looks at it."""
        called.append("see")
        return "A star."

    @tool(return_direct=True)
    def tell(sure: bool) -> str:
        """Tells it."""
        called.append("tell")
        return f"told {sure}"

    @wrap_model_call
    def in_turn(request, handler):
        return handler(request.override(tools=[[see, tell][len(called)]], tool_choice="any"))

    agent = create_agent(chat, [see, tell], middleware=[in_turn])
    turns = agent.invoke({"messages": [HumanMessage(content=messages[0]["content"])]})["messages"]
    assert called == ["see", "tell"]
    assert [turn.type for turn in turns] == ["human", "ai", "tool", "ai", "tool"]
    assert turns[-1].content.startswith("told ")
