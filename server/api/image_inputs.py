"""Lists of images in a request's body: data URLs, plain or as OpenAI's image parts, decoded with bounded haste."""

import asyncio
from collections.abc import Sequence

from PIL.Image import Image

from covervlm.server.api.chat_request import ImageContent, Text
from covervlm.server.engines.base import InvalidRequest
from covervlm.server.media.images import ImageLoader

ImageInput = Text | ImageContent
"""A base64 data URL, bare base64, or {"type": "image_url", "image_url": {"url": ...}}."""

_AT_ONCE = 16
MOST_PIXELS = 512_000_000
"""Of all images of one request together: 1.5 GB once they are decoded."""


async def load_images(loader: ImageLoader, inputs: Sequence[ImageInput], params: Sequence[str]) -> list[Image]:
    """The checked RGB images, in order; `params` are their places in the request. Raises InvalidRequest."""
    turns = asyncio.Semaphore(_AT_ONCE)
    pixels = 0

    async def load(item: ImageInput, param: str) -> Image:
        url, place = (item, param) if isinstance(item, str) else (item.image_url.url, f"{param}.image_url.url")
        nonlocal pixels
        async with turns:
            image = (await loader.load(url, param=place)).image
        pixels += image.width * image.height
        if pixels > MOST_PIXELS:
            message = f"The request's images have more than {MOST_PIXELS} pixels together; send fewer or smaller ones."
            raise InvalidRequest(message, param=param, code="images_too_large")
        return image

    tasks = [asyncio.ensure_future(load(item, param)) for item, param in zip(inputs, params, strict=True)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        # With one image refused, the rest need not be decoded.
        for task in tasks:
            task.cancel()
