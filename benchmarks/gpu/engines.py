"""The embedded engine around a model that is already in memory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.models.base import Adapter


def embedded(adapter: Adapter) -> TransformersEngine:
    """Not started yet; it keeps no tower outputs, so that every image is new."""
    config = TransformersEngineConfig("in memory", max_running=32, feature_cache_bytes=0, preprocess_workers=8)
    return TransformersEngine(config, load=lambda _: adapter)


@asynccontextmanager
async def serving(adapter: Adapter) -> AsyncIterator[TransformersEngine]:
    engine = embedded(adapter)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
