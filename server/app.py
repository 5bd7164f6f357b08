"""The application: what the settings ask for, wired together, and its life from start to stop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from covervlm.server import wiring
from covervlm.server.api import errors, openapi
from covervlm.server.api.middleware.admission import PROBES, Drain
from covervlm.server.api.wire.chat_response import ChatCompletionChunk
from covervlm.server.core.caller import InFlight
from covervlm.server.core.engine import Engine
from covervlm.server.engines.registry import build_engine, startup_failures
from covervlm.server.limits.freed import FreedMemory
from covervlm.server.limits.keys import Keys
from covervlm.server.media.images import ImageLoader
from covervlm.server.settings import Settings
from covervlm.server.telemetry.metrics import Metrics
from covervlm.server.telemetry.tracing import Tracing, build_tracing


class Application:
    """The ASGI application as `app`, and its life: `start`, `drain` and `stop`.

    Without an engine, the one that the settings ask for is built, and without tracing, that of the environment. Raises
    SettingsError for settings that cannot work.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None, tracing: Tracing | None = None) -> None:
        self._settings = settings
        self._engine = engine = engine or build_engine(settings)
        self._tracing = tracing = tracing or build_tracing()
        self._clip = wiring.build_clip(settings, engine)
        self._images = wiring.build_images(settings, ImageLoader)
        self._asker = wiring.build_asker(settings, engine)
        self.drain = Drain()
        self._forecaster, budget = wiring.build_forecast(settings, engine)
        keys, freed = Keys(settings.key_hashes), FreedMemory()
        memory = InFlight(int(settings.max_inflight_bytes), freed, freed.at_rest)
        metrics = Metrics(engine, model=settings.model_name)
        metrics.watch_inflight(lambda: memory.bytes)
        metrics.watch_forecast(lambda: self._forecaster.outlook)
        if self._clip is not None:
            metrics.watch_clip(self._clip.stats)
        if budget is not None:
            metrics.watch_adaptive_budget(lambda: budget.observe(engine.stats().waiting))
        self._shadows = wiring.build_shadows(settings, engine, memory, metrics, budget)
        prepare = wiring.build_preparation(settings, engine, self._images, self._asker, budget)
        self.app = FastAPI(
            title="covervlm",
            version=version("covervlm"),
            description="OpenAI-compatible vision-language server that keeps only the vision tokens that matter.",
            lifespan=self._lifespan,
            redirect_slashes=False,
            openapi_url=None,
            docs_url=None,
            redoc_url=None,
        )
        errors.install(self.app)
        wiring.add_middleware(
            self.app, settings, keys, metrics, tracing, memory, self.drain, self._forecaster, self._shadows
        )
        wiring.add_routes(
            self.app,
            settings,
            engine,
            self._clip,
            self._images,
            self._asker,
            prepare,
            metrics,
            self._forecaster,
            self._shadows,
        )
        public = PROBES if keys else None
        openapi.document(self.app, [ChatCompletionChunk], without_key=public, methods=settings.pruning_methods)

    async def start(self) -> None:
        """Load what the settings name, unless that is done. Raises StartupError."""
        if not self._engine.ready:
            with startup_failures(f"cannot load the model {self._settings.model!r}"):
                await self._engine.start()
        if self._clip is not None and (self._settings.clip_model != "auto" or self._settings.data_dir is not None):
            with startup_failures(f"cannot serve the CLIP model {self._clip.name!r}"):
                await self._clip.start()
        await self._forecaster.start()
        if self._shadows is not None:
            self._shadows.start()

    async def stop(self) -> None:
        """Finish what runs and let go of everything."""
        if self._shadows is not None:
            await self._shadows.stop()
        await self._forecaster.stop()
        await self._images.close()
        await self._asker.close()
        if self._clip is not None:
            await self._clip.stop()
        await self._engine.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop()


def create_app(
    settings: Settings | None = None, engine: Engine | None = None, tracing: Tracing | None = None
) -> FastAPI:
    """The ASGI application; it starts the engine where that is not ready yet, and stops it in the end.

    Raises SettingsError for settings that cannot work.
    """
    return Application(settings or Settings(), engine, tracing).app
