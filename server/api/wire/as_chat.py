"""The body of another API as a chat; from here on only the names of fields differ."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, ValidationError

from covervlm.server.api.errors import InvalidBody, parameter_name, validation_failure
from covervlm.server.api.wire.chat_request import ChatCompletionRequest
from covervlm.server.api.wire.sampling import Text
from covervlm.server.core.errors import InvalidRequest

Id = Annotated[Text, Field(max_length=256)]
Name = Annotated[Text, Field(min_length=1, max_length=256)]
"""Of a call of a function, and of the function."""


@dataclass(frozen=True)
class AsChat:
    """A chat; names: what the caller's API calls its fields, where that differs."""

    body: ChatCompletionRequest
    names: Mapping[str, str]


def renamed(error: InvalidRequest, names: Mapping[str, str]) -> InvalidRequest:
    """The same refusal with the caller's names of a chat's fields."""
    name = _own(error.param, names)
    message = str(error) if error.param is None else str(error).replace(f"'{error.param}'", f"'{name}'")
    return InvalidRequest(message, param=name, code=error.code)


@dataclass
class Turns:
    """The messages of a chat in the making; `place`: the field of the caller's body that a message comes from."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def begin(self, role: str, place: str, **fields: Any) -> None:
        self.names[f"messages[{len(self.messages)}]"] = place
        self.messages.append({"role": role, **fields})

    def text(self, text: str) -> None:
        self._part({"type": "text", "text": text})

    def image(self, url: str, place: str) -> None:
        count = self._part({"type": "image_url", "image_url": {"url": url}})
        self.names[f"messages[{len(self.messages) - 1}].content[{count - 1}].image_url.url"] = place

    def call(self, id: str, name: str, arguments: str) -> None:
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self.messages[-1].setdefault("tool_calls", []).append(call)

    def chat(self, names: Mapping[str, str], **fields: Any) -> AsChat:
        """The whole chat; names: the caller's, of these fields. Raises InvalidBody with them."""
        names = {**names, **self.names}
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            return AsChat(ChatCompletionRequest.model_validate({"messages": self.messages, **given}), names)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = _own(parameter_name(first["loc"]), names)
            raise InvalidBody(validation_failure({**first, "loc": ("body", name or "body")})) from None

    def _part(self, part: dict[str, Any]) -> int:
        content = self.messages[-1].setdefault("content", [])
        content.append(part)
        return len(content)


def _own(name: str | None, names: Mapping[str, str]) -> str | None:
    """The caller's name for a chat's field, by the longest known name that equals or contains it."""
    if name is None:
        return None
    around = [known for known in names if name == known or name.startswith((f"{known}.", f"{known}["))]
    longest = max(around, key=len, default="")
    return f"{names[longest]}{name[len(longest) :]}" if longest else name
