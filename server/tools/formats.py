"""The forms in which models write calls of functions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from covervlm.server.core.generation import ToolCall


@dataclass(frozen=True)
class ToolFormat:
    """Calls between `before` and `after`, each `between` the last and the next, as objects with a name and a `key`.

    marker: what opens calls in the middle of an answer; where it is empty, calls can only begin an answer.
    special: the marker is a special token, which is no part of the text unless it is asked for.
    result: how a call's result is written where the chat template has no place for it.
    """

    before: str = ""
    between: str = "\n"
    after: str = ""
    key: str = "arguments"
    marker: str = ""
    special: bool = False
    result: str = "Result of {name}: {text}"
    short_ids: bool = False
    """Whether ids have nine letters and digits, which these models' chat templates insist on."""

    def opened(self, name: str) -> str:
        """What comes before a call's arguments; "}" comes after them."""
        return f'{{"name": {json.dumps(name)}, "{self.key}": '

    def written(self, calls: Sequence[ToolCall]) -> str:
        """Calls as the text of an assistant's turn."""
        said = self.between.join(f"{self.opened(call.name)}{call.arguments}}}" for call in calls)
        return f"{self.before}{said}{self.after}"


FORMATS = {
    "hermes": ToolFormat(
        "<tool_call>\n",
        "\n</tool_call>\n<tool_call>\n",
        "\n</tool_call>",
        marker="<tool_call>",
        result="<tool_response>\n{text}\n</tool_response>",
    ),
    "mistral": ToolFormat("[", ", ", "]", marker="[TOOL_CALLS]", special=True, short_ids=True),
    "llama3_json": ToolFormat(between="; ", key="parameters", marker="<|python_tag|>", special=True),
    "json": ToolFormat(),
}
"""By the names that `--tool-format` takes."""
