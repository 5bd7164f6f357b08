"""Lists of images in a request's body: data URLs, plain or as OpenAI's image parts, decoded a few at a time."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from PIL.Image import Image
from pydantic import Tag

from covervlm.server.api.wire.chat_request import ImageContent, Text
from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.tasks import all_or_none
from covervlm.server.core.wire import one_of
from covervlm.server.media.images import ImageLoader


def _tag(value: object) -> str:
    return "<url>" if isinstance(value, str) else "<part>"


ImageInput = Annotated[
    Annotated[Text, Tag("<url>")] | Annotated[ImageContent, Tag("<part>")], one_of(_tag, "a URL or an image_url part")
]
"""A base64 data URL, bare base64, or {"type": "image_url", "image_url": {"url": ...}}."""

MOST_IMAGES = 20_000
"""Most images of a request that starts a job."""
_AT_ONCE = 16
MOST_PIXELS = 512_000_000
"""Most pixels of all images of one request together: 1.5 GB once they are decoded."""


async def load_images(
    loader: ImageLoader, inputs: Sequence[ImageInput], params: Sequence[str], caller: Caller
) -> list[Image]:
    """The checked RGB images, in order; `params` are their places in the request. Raises InvalidRequest."""
    turns = asyncio.Semaphore(_AT_ONCE)
    pixels = 0

    async def load(item: ImageInput, param: str) -> Image:
        url, place = (item, param) if isinstance(item, str) else (item.image_url.url, f"{param}.image_url.url")
        nonlocal pixels
        async with turns:
            image = (await loader.load(url, param=place, caller=caller)).image
        pixels += image.width * image.height
        if pixels > MOST_PIXELS:
            message = f"The request's images have more than {MOST_PIXELS} pixels together; send fewer or smaller ones."
            raise InvalidRequest(message, param=param, code="images_too_large")
        return image

    return await all_or_none(load(item, param) for item, param in zip(inputs, params, strict=True))
