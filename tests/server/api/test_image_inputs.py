"""Lists of images in a body: in order, a few at a time, and no more of the event loop than they need."""

import asyncio
import base64
import io

import pytest
from PIL import Image

from covervlm.server.api.image_inputs import load_images
from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.decoding import ImageLimits
from covervlm.server.media.images import ImageLoader


@pytest.fixture
async def loader():
    loader = ImageLoader(ImageLimits(max_bytes=2**20, max_pixels=2**20), threads=2, max_pending=100)
    yield loader
    await loader.close()


def url(size):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def test_thousands_of_images_make_a_handful_of_tasks(loader):
    sizes = [(1 + number % 7, 1 + number % 5) for number in range(500)]
    made = []

    def make(loop, coroutine, **options):
        task = asyncio.Task(coroutine, loop=loop, **options)
        made.append(task)
        return task

    asyncio.get_running_loop().set_task_factory(make)
    found = await load_images(loader, [url(size) for size in sizes], [""] * len(sizes), Caller())
    assert [image.size for image in found] == sizes
    assert len(made) < 50


async def test_an_image_that_is_none_is_named(loader):
    with pytest.raises(InvalidRequest) as refused:
        await load_images(loader, [url((1, 1))] * 40 + ["AAAA"], [f"images[{i}]" for i in range(41)], Caller())
    assert refused.value.param == "images[40]"


async def test_no_images_are_no_images(loader):
    assert await load_images(loader, [], [], Caller()) == []
