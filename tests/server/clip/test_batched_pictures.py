"""Pictures on their way to the encoder: few at a time, charged at what they become, with turns for every key."""

import asyncio
import threading
import weakref

import pytest
import torch
from PIL import Image

from covervlm.server.clip.encoder.batched import BatchedEncoder
from covervlm.server.core.caller import ANONYMOUS, Callers, InFlight
from covervlm.server.core.errors import EngineOverloaded
from covervlm.server.models.pictures import Cost

TINY = [Image.new("RGB", (1, 1), (i % 256, 0, 0)) for i in range(200)]
COST = Cost(pixels=100, numbers=3 * 100, whole=100)
SECONDS = 20


class Encoder:
    """Makes 300 numbers of a picture, and counts those that are alive."""

    device = torch.device("cpu")

    def __init__(self):
        self.alive, self.most, self.lock = weakref.WeakSet(), 0, threading.Lock()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def cost(self, width, height):
        return COST

    def preprocess(self, image):
        self.entered.set()
        assert self.gate.wait(SECONDS)
        pixels = torch.full((3, 10, 10), float(image.getpixel((0, 0))[0]))
        with self.lock:
            self.alive.add(pixels)
            self.most = max(self.most, len(self.alive))
        return pixels

    def embed_pixels(self, pixels):
        return torch.stack([each.mean()[None] for each in pixels])


@pytest.fixture
def encoder():
    return Encoder()


@pytest.fixture
def batched(encoder):
    batched = BatchedEncoder(encoder)
    yield batched
    encoder.gate.set()
    batched.close()


async def test_of_many_small_pictures_no_more_than_a_batch_is_ever_there_as_pixels(batched, encoder):
    memory = InFlight(16 * COST.kept + 2 * COST.work)
    with Callers(memory=memory).request(ANONYMOUS) as caller:
        rows = await batched.images(TINY, caller=caller)
        assert memory.bytes == 0
    assert [int(row) for row in rows] == [i % 256 for i in range(200)]
    assert 16 <= encoder.most <= 32  # the batch before may not have been collected yet


async def test_of_thousands_of_texts_no_more_than_a_part_is_ever_there_as_tokens(batched, encoder):
    there, most, texts = 0, 0, [f"text {i}" for i in range(1000)]

    def tokenize(part):
        nonlocal there, most
        there += len(part)
        most = max(most, there)
        return [[int(text.split()[1])] for text in part]

    def embed_ids(ids):
        nonlocal there
        there -= len(ids)
        return torch.tensor(ids, dtype=torch.float32)

    encoder.tokenize, encoder.embed_ids = tokenize, embed_ids
    rows, tokens = await batched.texts(texts, owner="me", param=str)
    assert [int(row) for row in rows] == list(range(1000))
    assert (tokens, there) == (1000, 0)
    assert most <= 64


async def test_pixels_that_find_no_memory_are_not_made(batched, encoder):
    with Callers(memory=InFlight(16 * COST.kept - 1)).request("a") as caller, pytest.raises(EngineOverloaded):
        await batched.images(TINY, caller=caller)
    assert encoder.most == 0


async def test_who_leaves_is_not_worked_for_and_charges_nothing_more(batched, encoder):
    encoder.gate.clear()
    memory = InFlight(10**9)

    async def request():
        with Callers(memory=memory).request("a") as caller:
            await batched.images(TINY, caller=caller)

    task = asyncio.create_task(request())
    assert await asyncio.to_thread(encoder.entered.wait, SECONDS)
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert memory.bytes  # as long as the threads are at it
    encoder.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert memory.bytes == 0
    assert encoder.most <= 2


async def test_one_keys_pictures_leave_a_thread_to_another_key(batched, encoder):
    encoder.gate.clear()
    callers = Callers()
    with callers.request("greedy") as greedy, callers.request("other") as other:
        first = asyncio.create_task(batched.images(TINY, caller=greedy))
        assert await asyncio.to_thread(encoder.entered.wait, SECONDS)
        encoder.entered.clear()
        second = asyncio.create_task(batched.images(TINY[:1], caller=other))
        assert await asyncio.to_thread(encoder.entered.wait, SECONDS)
        encoder.gate.set()
        await asyncio.gather(first, second)
