"""What a caller gives, as the body of a chat completion: the same fields, checked by the same rules."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from covervlm.clients.images import sources
from covervlm.clients.videos import Media, Video
from covervlm.server.api.errors import validation_failure
from covervlm.server.api.wire.chat_request import ChatCompletionRequest
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.pruning_policy import VisionPruning
from covervlm.server.core.wire import UNKNOWN
from covervlm.server.local.pictures import Album

Message = Mapping[str, Any]

_PRUNING = VisionPruning.model_fields.keys() - ChatCompletionRequest.model_fields.keys()
"""Fields of `vision_pruning` that can be given beside the request's own; the others' names are taken."""
_SOURCES = ("image", "url", "path", "base64")


def about(image: Media, question: str) -> list[Message]:
    """A user's question about an image, several in a list, or none; images first, as LLaVA's chat templates have it.

    An image may be a Video. Raises as `Video.part`.
    """
    images = [
        source.part() if isinstance(source, Video) else {"type": "image", "image": source} for source in sources(image)
    ]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


def request_body(messages: Sequence[Message], album: Album, options: Mapping[str, Any]) -> ChatCompletionRequest:
    """The body, greedy unless it says otherwise. Raises InvalidRequest naming a field, OSError for unreadable files."""
    fields = {"temperature": 0, **_plain(options), "messages": _plain([_message(each, album) for each in messages])}
    pruning = {name: fields.pop(name) for name in _PRUNING & fields.keys()}
    if pruning:
        fields["vision_pruning"] = {**(fields.get("vision_pruning") or {}), **pruning}
    try:
        return ChatCompletionRequest.model_validate(fields)
    except ValidationError as error:
        first: dict[str, Any] = {**error.errors(include_url=False)[0]}
        if first["type"] == UNKNOWN and not first["loc"]:
            name = first["ctx"]["name"]
            nearest = get_close_matches(name, [*ChatCompletionRequest.model_fields, *_PRUNING], 1)
            first["ctx"] = {"name": name, "nearest": nearest[0] if nearest else None}
        detail = validation_failure({**first, "loc": ("body", *first["loc"])}).detail
        raise InvalidRequest(detail.message, param=detail.param, code=detail.code) from None


def _plain(value: Any) -> Any:
    """The value as JSON would have it: numbers of numpy and torch, over which scripts loop, as Python's own.

    Raises InvalidRequest for half a character, which JSON has none of and no tokenizer takes.
    """
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"A text has half a character ({value[error.start]!r}); they come in pairs.") from None
    return value.item() if getattr(value, "shape", None) == () else value


def _message(message: Message, album: Album) -> Message:
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return message
    return {**message, "content": [_part(part, album) for part in content]}


def _part(part: Any, album: Album) -> Any:
    """An image as transformers' chat templates have it becomes one of OpenAI's API."""
    if not isinstance(part, Mapping) or part.get("type") != "image":
        return part
    given = [part[name] for name in _SOURCES if part.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequest(f"An image in a message needs one of {', '.join(_SOURCES)}.", param="messages")
    (source,) = given
    if "base64" in part and isinstance(source, str) and not source.startswith("data:"):
        source = f"data:;base64,{source}"
    return {"type": "image_url", "image_url": {"url": album.url(source)}}
