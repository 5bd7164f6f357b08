"""What happens to every field of a request: `python -m covervlm.server.api.wire.fields` prints the docs' tables."""

import json
from collections.abc import Mapping
from typing import Any

from covervlm.server.api.wire.chat_request import ChatCompletionRequest, ChatMessage, Unless
from covervlm.server.api.wire.messages_request import MessagesRequest
from covervlm.server.api.wire.responses_request import ResponsesRequest
from covervlm.server.core.wire import Wire


def fate(model: type[Wire], name: str) -> str:
    """What happens to a field, in a few words."""
    field = model.model_fields[name]
    for mark in field.metadata:
        if isinstance(mark, Unless):
            others = [f"`{json.dumps(value)}`" for value in mark.neutral if value is not None]
            return f"refused by name, unless {' or '.join(['null', *others])}"
    return "accepted, changes nothing" if field.annotation is Any else "works"


CHAT: dict[type[Wire], str] = {ChatCompletionRequest: "", ChatMessage: "messages[]."}
MESSAGES: dict[type[Wire], str] = {MessagesRequest: ""}
RESPONSES: dict[type[Wire], str] = {ResponsesRequest: ""}


def table(models: Mapping[type[Wire], str]) -> str:
    """The fields of `models` in Markdown; each model's value is put in front of its fields' names."""
    lines = ["| Field | What happens |", "| --- | --- |"]
    for model, prefix in models.items():
        lines += [f"| `{prefix}{name}` | {fate(model, name)} |" for name in sorted(model.model_fields)]
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join(map(table, (CHAT, MESSAGES, RESPONSES))))
