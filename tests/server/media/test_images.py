"""The loader: images off the event loop, in turn, charged before they are decoded, refused by name."""

import asyncio
import base64
import io
import threading
from types import SimpleNamespace

import pytest
from PIL import Image

from covervlm.server.core.caller import ANONYMOUS, Caller, Callers, InFlight
from covervlm.server.core.errors import EngineOverloaded, InvalidRequest
from covervlm.server.core.pace import AT_ONCE, IMAGES
from covervlm.server.media import images
from covervlm.server.media.decoding import ImageLimits, image_digest
from covervlm.server.media.images import ImageLoader

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=100_000)
SECONDS = 20


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def b64(data):
    return base64.b64encode(data).decode()


async def test_images_load_off_the_event_loop_with_the_refusal_naming_the_part():
    loader = ImageLoader(LIMITS, threads=1, max_pending=4)
    try:
        part = await loader.load(b64(encoded(Image.new("RGB", (2, 2), "red"))), param="messages[0]", caller=Caller())
        assert part.image.getpixel((0, 0)) == (255, 0, 0)
        assert part.digest == image_digest(part.image)
        with pytest.raises(InvalidRequest) as refused:
            await loader.load("nonsense!", param="messages[3].content[1].image_url.url", caller=Caller())
        assert refused.value.param == "messages[3].content[1].image_url.url"
    finally:
        await loader.close()


async def test_images_beyond_a_keys_pace_wait_before_anything_is_read_of_them(loader, monkeypatch):
    waited, url = [], b64(encoded(Image.new("RGB", (1, 1))))

    async def at_once(seconds):
        waited.append(seconds)

    monkeypatch.setattr(images, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": at_once}))
    callers = Callers(clock=lambda: 100.0)
    with callers.request("greedy") as greedy, callers.request("other") as other:
        for _ in range(int(IMAGES * AT_ONCE) + 3):
            await loader.load(url, param="p", caller=greedy)
        assert waited == pytest.approx([1 / IMAGES, 2 / IMAGES, 3 / IMAGES])
        await loader.load(url, param="p", caller=other)
    await loader.load(url, param="p", caller=Caller())
    assert len(waited) == 3


async def test_remote_images_are_decoded_like_any_other_and_refused_by_name():
    async def fetch(url, max_bytes, *, owner, hold, pace, kind):
        assert max_bytes == LIMITS.max_bytes
        if url == "https://images.test/red.png":
            return encoded(Image.new("RGB", (2, 2), "red"))
        if url == "https://images.test/page.html":
            return b"<html>"
        raise InvalidRequest("not to be had", code="invalid_image_url")

    async def nothing():
        pass

    fetch.aclose = nothing
    loader = ImageLoader(LIMITS, threads=1, max_pending=4, fetch=fetch)
    try:
        part = await loader.load(" https://images.test/red.png\n", param="p", caller=Caller())
        assert part.digest == image_digest(Image.new("RGB", (2, 2), "red"))
        for url, code in [("https://images.test/page.html", "invalid_image"), ("http://x/", "invalid_image_url")]:
            with pytest.raises(InvalidRequest) as refused:
                await loader.load(url, param="messages[0].content[0].image_url.url", caller=Caller())
            assert (refused.value.param, refused.value.code) == ("messages[0].content[0].image_url.url", code)
    finally:
        await loader.close()


@pytest.mark.parametrize("opened", [True, False])
async def test_files_are_read_from_an_opened_folder_only(tmp_path, opened):
    (tmp_path / "red.png").write_bytes(encoded(Image.new("RGB", (2, 2), "red")))
    loader = ImageLoader(LIMITS, threads=1, max_pending=4, folder=tmp_path if opened else None)
    try:
        if opened:
            part = await loader.load(f"file://{tmp_path}/red.png", param="p", caller=Caller())
            assert part.image.getpixel((0, 0)) == (255, 0, 0)
        else:
            with pytest.raises(InvalidRequest, match="not as 'file' URLs"):
                await loader.load(f"file://{tmp_path}/red.png", param="p", caller=Caller())
    finally:
        await loader.close()


async def test_no_more_images_wait_than_allowed_and_there_is_room_again_after(monkeypatch):
    opened, threads, open_image = threading.Event(), set(), images.open_image
    red = b64(encoded(Image.new("RGB", (1, 1), "red")))

    def slow(data, limits):
        threads.add(threading.current_thread().name)
        assert opened.wait(SECONDS)
        return open_image(data, limits)

    monkeypatch.setattr(images, "open_image", slow)
    loader = ImageLoader(LIMITS, threads=2, max_pending=5)
    try:
        loads = [asyncio.create_task(loader.load(red, param="p", caller=Caller())) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(EngineOverloaded):
            await loader.load(red, param="p", caller=Caller())
        opened.set()
        for part in [*await asyncio.gather(*loads), await loader.load(red, param="p", caller=Caller())]:
            assert part.image.getpixel((0, 0)) == (255, 0, 0)
        assert len(threads) <= 2
        assert all(name.startswith("media") for name in threads)
    finally:
        opened.set()
        await loader.close()


async def test_what_is_fetched_or_read_is_charged_until_it_is_decoded(tmp_path):
    """The encoded bytes, wherever they come from, as a body's are; afterwards only the pixels."""
    data, memory, seen = encoded(Image.new("RGB", (1, 1), "red")), InFlight(LIMITS.max_bytes + 100), []

    async def fetch(url, max_bytes, *, owner, hold, pace, kind):
        for _ in data:
            hold(1)
        seen.append(memory.bytes)
        return data

    async def nothing():
        pass

    fetch.aclose = nothing
    (tmp_path / "red.png").write_bytes(data)
    loader = ImageLoader(LIMITS, threads=1, max_pending=4, fetch=fetch, folder=tmp_path)
    try:
        with Callers(memory=memory).request(ANONYMOUS) as caller:
            await loader.load("http://images.test/red.png", param="p", caller=caller)
            await loader.load(f"file://{tmp_path}/red.png", param="p", caller=caller)
            assert (seen, memory.bytes) == ([len(data)], 2 * 4)
            caller.hold(LIMITS.max_bytes + 100 - 2 * 4 - 10)
            for url in ("http://images.test/red.png", f"file://{tmp_path}/red.png"):
                with pytest.raises(EngineOverloaded):
                    await loader.load(url, param="p", caller=caller)
            assert memory.bytes == LIMITS.max_bytes + 100 - 10
        assert memory.bytes == 0
    finally:
        await loader.close()


@pytest.fixture
async def loader():
    loader = ImageLoader(LIMITS, threads=2, max_pending=100)
    yield loader
    await loader.close()


async def test_pixels_are_charged_before_any_is_decoded(loader, monkeypatch):
    def decoded(*_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(images.Encoded, "decoded", decoded)
    url = b64(encoded(Image.new("RGB", (100, 100))))
    callers = Callers(memory=InFlight(4 * 100 * 100 + 2 * len(url) - 1))
    with callers.request("a") as caller, pytest.raises(EngineOverloaded):
        await loader.load(url, param="p", caller=caller)


MODES = {
    "PNG": ["RGB", "L", "RGBA", "P"],
    "JPEG": ["RGB", "L", "CMYK"],
    "WEBP": ["RGB", "L", "RGBA", "P", "CMYK"],
    "GIF": ["RGB", "L", "RGBA", "P"],
    "BMP": ["RGB", "L", "RGBA", "P"],
}
"""That Pillow writes."""


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
async def test_once_decoded_an_image_is_charged_at_four_bytes_a_pixel(loader, mode, kind):
    url = b64(encoded(Image.new("RGB", (30, 20), "red").convert(mode), kind))
    memory = InFlight(10**9)
    with Callers(memory=memory).request("a") as caller:
        await loader.load(url, param="p", caller=caller)
        assert memory.bytes == 4 * 30 * 20
    assert memory.bytes == 0


async def test_what_a_model_does_not_take_is_refused_by_its_header(loader, monkeypatch):
    def check(width, height):
        raise InvalidRequest(f"{width} x {height} is too narrow.")

    monkeypatch.setattr(images.Encoded, "decoded", None)
    with pytest.raises(InvalidRequest, match="1 x 9 is too narrow") as refused:
        await loader.within(check).load(b64(encoded(Image.new("L", (1, 9)))), param="images[3]", caller=Caller())
    assert refused.value.param == "images[3]"


async def test_who_is_cancelled_keeps_the_turn_until_the_thread_has_ended(loader, monkeypatch):
    begun, opened = threading.Event(), threading.Event()

    def slow(data, limits):
        begun.set()
        assert opened.wait(SECONDS)
        raise InvalidRequest("too late")

    monkeypatch.setattr(images, "open_image", slow)
    memory = InFlight(10**9)

    async def request():
        with Callers(memory=memory).request("a") as caller:
            await loader.load("YWJj", param="p", caller=caller)

    task = asyncio.create_task(request())
    assert await asyncio.to_thread(begun.wait, SECONDS)
    for _ in range(2):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (len(loader._turns), memory.bytes) == (1, 8)
    opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (len(loader._turns), memory.bytes) == (0, 0)


async def test_one_keys_long_images_leave_a_thread_to_other_keys(loader, monkeypatch):
    opened, open_image = threading.Event(), images.open_image
    red = b64(encoded(Image.new("RGB", (1, 1), "red")))

    def slow(data, limits):
        if data == b"abc":
            assert opened.wait(SECONDS)
        return open_image(data, limits)

    monkeypatch.setattr(images, "open_image", slow)
    try:
        greedy = [asyncio.create_task(loader.load("YWJj", param="p", caller=Caller("greedy"))) for _ in range(5)]
        await asyncio.sleep(0)
        async with asyncio.timeout(SECONDS):
            await loader.load(red, param="p", caller=Caller("other"))
        assert not any(task.done() for task in greedy)
    finally:
        opened.set()
    assert all(isinstance(e, InvalidRequest) for e in await asyncio.gather(*greedy, return_exceptions=True))
