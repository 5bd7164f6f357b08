"""What a refused request held is let go with its answer."""

import asyncio
import gc
import weakref

import pytest
from starlette.requests import Request

from covervlm.server.api.exchange import unless_disconnected


class Large:
    pass


async def test_what_refused_work_held_is_gone_before_the_garbage_collector_comes():
    held = []

    async def refuse():
        large = Large()
        held.append(weakref.ref(large))
        await asyncio.sleep(0)
        raise ValueError("refused")

    async def receive():
        await asyncio.get_running_loop().create_future()

    gc.disable()
    try:
        with pytest.raises(ValueError, match="refused") as refusal:
            await unless_disconnected(Request({"type": "http"}, receive), refuse())
        del refusal
        for _ in range(3):
            await asyncio.sleep(0)
        assert [ref() for ref in held] == [None]
    finally:
        gc.enable()
