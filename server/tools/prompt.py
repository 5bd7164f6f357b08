"""Functions, calls and results in plain text, for chat templates that have no place for them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from covervlm.server.core.generation import Function, Message, ToolCall, ToolUse
from covervlm.server.tools.formats import FORMATS

_HERMES = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{functions}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""The words that Qwen's models were trained with."""
_PLAIN = """You may call these functions:
{functions}

To call them, answer with nothing but this, in JSON:
{example}"""
_EXAMPLE = [ToolCall("", "<function-name>", "<arguments-object>")]


def definitions(functions: Iterable[Function]) -> list[dict[str, Any]]:
    """Functions as OpenAI's API and chat templates spell them."""
    return [
        {
            "type": "function",
            "function": {"name": each.name, "description": each.description, "parameters": dict(each.parameters)},
        }
        for each in functions
    ]


def introduced(messages: Sequence[Message], tools: ToolUse, *, as_system: bool) -> list[Message]:
    """The messages with the functions described first: in the system's turn if there can be one, else in the user's."""
    functions = "\n".join(json.dumps(each, ensure_ascii=False) for each in definitions(tools.functions))
    example = FORMATS[tools.format].written(_EXAMPLE)
    text = (_HERMES if tools.format == "hermes" else _PLAIN).format(functions=functions, example=example)
    first, *rest = messages
    if first.role == "system":
        return [replace(first, content=(*first.content, f"\n\n{text}")), *rest]
    if as_system:
        return [Message("system", (text,)), *messages]
    return [replace(first, content=(f"{text}\n\n", *first.content)), *rest]


def spelled_out(messages: Sequence[Message], form: str) -> list[Message]:
    """The messages with calls as text of the assistant's turns, and results as turns of the user."""
    written = FORMATS[form]
    names: dict[str | None, str] = {}
    turns: list[Message] = []
    follows_result = False
    for message in messages:
        turn = message
        if message.tool_calls:
            names |= {call.id: call.name for call in message.tool_calls}
            said = (message.text, written.written(message.tool_calls))
            turn = Message("assistant", ("\n".join(filter(None, said)),))
        elif message.role == "tool":
            name = names.get(message.tool_call_id, "the function")
            turn = Message("user", (written.result.format(name=name, text=message.text),))
        if follows_result and turn.role == "user":  # templates want user and assistant to alternate
            turns[-1] = replace(turns[-1], content=(*turns[-1].content, "\n", *turn.content))
        else:
            turns.append(turn)
        follows_result = turn.role == "user" and (message.role == "tool" or follows_result)
    return turns
