"""Messages of a conversation as OpenAI's API spells them, with images of every kind."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from covervlm.clients.images import ImageSource, data_url, is_remote

Message: TypeAlias = Mapping[str, Any]
"""What `user`, `assistant` and `system` make, or any message of OpenAI's API."""


def user(text: str, *images: ImageSource) -> Message:
    """A user's message: images first, then the text, as LLaVA's chat templates have it.

    An image is a path, an http(s) or data URL, the bytes of a file, a PIL image or a numpy array.
    """
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    if text or not parts:
        parts.append({"type": "text", "text": text})
    return {"role": "user", "content": parts}


def assistant(text: str) -> Message:
    """An earlier answer of the model."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    """Instructions that hold for the whole conversation."""
    return {"role": "system", "content": text}


def remote_images(messages: Sequence[Message]) -> list[str]:
    """The http(s) URLs of images in the messages, each once: servers do not fetch for others, so the client does."""
    return list(dict.fromkeys(part["image_url"]["url"] for part in _image_parts(messages)))


def with_images(messages: Sequence[Message], fetched: Mapping[str, bytes]) -> list[Message]:
    """The messages with the files in place of the URLs that they came from."""
    return [
        {**message, "content": [_embedded(part, fetched) for part in message["content"]]}
        if any(True for _ in _image_parts([message]))
        else message
        for message in messages
    ]


def _image_parts(messages: Sequence[Message]) -> Iterator[Any]:
    for message in messages:
        for part in message["content"]:
            if isinstance(part, Mapping) and part.get("type") == "image_url" and is_remote(part["image_url"]["url"]):
                yield part


def _embedded(part: Any, fetched: Mapping[str, bytes]) -> Any:
    if part.get("type") != "image_url" or part["image_url"]["url"] not in fetched:
        return part
    return {**part, "image_url": {**part["image_url"], "url": data_url(fetched[part["image_url"]["url"]])}}
