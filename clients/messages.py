"""Messages of a conversation as OpenAI's API spells them, with images of every kind."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from covervlm.clients.images import ImageSource, image_part

Message: TypeAlias = Mapping[str, Any]
"""What `user`, `assistant` and `system` make, or any message of OpenAI's API."""


def user(text: str, *images: ImageSource) -> Message:
    """A user's message: images first, then the text, as LLaVA's chat templates have it.

    An image is a path, an http(s) or data URL, the bytes of a file, a PIL image or a numpy array.
    """
    parts = [image_part(image) for image in images]
    if text or not parts:
        parts.append({"type": "text", "text": text})
    return {"role": "user", "content": parts}


def assistant(text: str) -> Message:
    """An earlier answer of the model."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    """Instructions that hold for the whole conversation."""
    return {"role": "system", "content": text}
