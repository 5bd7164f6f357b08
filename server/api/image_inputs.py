"""Lists of images in a request's body: data URLs, plain or as OpenAI's image parts, decoded a few at a time."""

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
    images: list[Image | None] = [None] * len(inputs)
    waiting = iter(enumerate(zip(inputs, params, strict=True)))
    pixels = 0

    async def load() -> None:
        nonlocal pixels
        for number, (item, param) in waiting:
            url, place = (item, param) if isinstance(item, str) else (item.image_url.url, f"{param}.image_url.url")
            image = images[number] = (await loader.load(url, param=place, caller=caller)).image
            pixels += image.width * image.height
            if pixels > MOST_PIXELS:
                message = f"The request's images have more than {MOST_PIXELS} pixels together; "
                raise InvalidRequest(f"{message}send fewer or smaller ones.", param=param, code="images_too_large")

    # Not a task for each of thousands: making them all, and ending them, would keep the event loop from everybody else.
    await all_or_none(load() for _ in range(min(_AT_ONCE, len(inputs))))
    return [image for image in images if image is not None]
