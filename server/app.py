"""The application: engine, image loader, metrics and routes wired together, and their life from start to stop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from covervlm.server.access import CallerLimits, Callers, Keys
from covervlm.server.adaptive_budget import AdaptiveBudget
from covervlm.server.agent import build_agent
from covervlm.server.api import chat, clip, errors, models, openapi, ops, playground
from covervlm.server.api.authentication import PROBES, Authentication
from covervlm.server.api.boundary import Boundary
from covervlm.server.api.chat_response import ChatCompletionChunk
from covervlm.server.api.deadline import Deadline
from covervlm.server.api.draining import Drain, Draining
from covervlm.server.api.load_shedding import LoadShedding
from covervlm.server.api.metrics import Metrics
from covervlm.server.api.prepare import Preparation
from covervlm.server.clip.registry import build_clip, build_words
from covervlm.server.engines.base import Engine
from covervlm.server.engines.registry import build_engine, startup_failures
from covervlm.server.inflight import InFlight
from covervlm.server.media.addresses import AddressPolicy
from covervlm.server.media.fetch import Fetcher, FetchLimits
from covervlm.server.media.images import ImageLimits, ImageLoader
from covervlm.server.settings import Settings
from covervlm.server.tracing import Tracing, build_tracing


def create_app(
    settings: Settings | None = None, engine: Engine | None = None, tracing: Tracing | None = None
) -> FastAPI:
    """The ASGI application; it starts the engine where that is not ready yet, and stops it in the end.

    Without an engine, the one that the settings ask for is built, and without tracing, that of the environment. Raises
    SettingsError for settings that cannot work.
    """
    settings = settings or Settings()
    engine = engine or build_engine(settings)
    tracing = tracing or build_tracing()
    clip_service = build_clip(settings, engine)
    metrics = Metrics(engine, model=settings.model_name)
    if clip_service is not None:
        metrics.watch_clip(clip_service)
    loader = ImageLoader(
        ImageLimits(int(settings.max_image_bytes), settings.max_image_pixels),
        threads=settings.media_threads,
        max_pending=settings.max_images * (settings.max_running + settings.max_waiting),
        fetch=_fetcher(settings) if settings.remote_media else None,
        folder=settings.allowed_media_dir,
    )

    async def start() -> None:
        """Load what the settings name, once. Raises StartupError."""
        if not engine.ready:
            with startup_failures(f"cannot load the model {settings.model!r}"):
                await engine.start()
        if clip_service is not None and (settings.clip_model != "auto" or settings.data_dir is not None):
            with startup_failures(f"cannot serve the CLIP model {clip_service.name!r}"):
                await clip_service.start()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await start()
        try:
            yield
        finally:
            await loader.close()
            if clip_service is not None:
                await clip_service.stop()
            await engine.stop()
            if tracing is not None:
                await asyncio.to_thread(tracing.stop)

    app = FastAPI(
        title="covervlm",
        version=version("covervlm"),
        description="OpenAI-compatible vision-language server that keeps only the vision tokens that matter.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.start = start
    errors.install(app)
    app.state.drain = Drain()
    # The one added last is outermost.
    limits = CallerLimits(
        settings.key_requests_per_minute, settings.key_concurrent_requests, settings.key_images_per_minute
    )
    token = settings.metrics_token.get_secret_value() if settings.metrics_token else None
    keys = Keys(settings.key_hashes)
    inflight = InFlight(int(settings.max_inflight_bytes))
    metrics.watch_inflight(inflight)
    app.add_middleware(Deadline, seconds=settings.request_timeout)
    app.add_middleware(LoadShedding, inflight=inflight)
    app.add_middleware(Authentication, keys=keys, callers=Callers(limits), metrics_token=token)
    app.add_middleware(Draining, drain=app.state.drain)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(
        Boundary,
        metrics=metrics,
        tracing=tracing,
        max_body_bytes=int(settings.max_body_bytes),
        receive_timeout=settings.receive_timeout,
        keeps_content=settings.log_content,
    )
    adaptive_budget = _adaptive_budget(settings)
    if adaptive_budget is not None:
        metrics.watch_adaptive_budget(lambda: adaptive_budget.observe(engine.stats().waiting))
    prepare = Preparation(engine, settings, loader, build_agent(engine, settings), adaptive_budget)
    app.include_router(chat.router(engine, prepare, metrics))
    app.include_router(models.router(engine, settings, clip_service.name if clip_service is not None else None))
    app.include_router(ops.router(engine, metrics))
    app.include_router(playground.router(engine, settings))
    if clip_service is not None:
        app.include_router(clip.router(clip_service, loader, build_words(engine, settings)))
    openapi.document(app, [ChatCompletionChunk], without_key=PROBES if keys else None)
    return app


def _adaptive_budget(settings: Settings) -> AdaptiveBudget | None:
    """The floor is reached when half as many requests wait as are answered at once."""
    budgets = settings.budget_range
    return None if budgets is None else AdaptiveBudget(budgets, full_queue=settings.max_running // 2)


def _fetcher(settings: Settings) -> Fetcher:
    return Fetcher(
        AddressPolicy(settings.allowed_media_networks, settings.allowed_media_hosts),
        FetchLimits(settings.max_media_redirects, settings.media_timeout, settings.media_read_timeout),
    )
