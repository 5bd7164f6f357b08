"""The embedded engine around a model that is already in memory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.models.base import Adapter


@asynccontextmanager
async def serving(adapter: Adapter) -> AsyncIterator[TransformersEngine]:
    """An engine that keeps no tower outputs, so that every image is new."""
    config = TransformersEngineConfig("in memory", max_running=32, feature_cache_bytes=0, preprocess_workers=8)
    engine = TransformersEngine(config, load=lambda _: adapter)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
