"""The parts of the application that the settings ask for; each function turns settings into the values a part takes."""

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from covervlm.server.api.answer import Conversation
from covervlm.server.api.middleware.admission import Admission, Drain
from covervlm.server.api.middleware.boundary import Boundary
from covervlm.server.api.preparation import ChatDefaults, Preparation
from covervlm.server.api.report import Fingerprint
from covervlm.server.api.routes import (
    chat,
    clip,
    completions,
    forecast,
    messages,
    models,
    operations,
    playground,
    responses,
    tokens,
)
from covervlm.server.asking.agent import Agent
from covervlm.server.asking.asker import Asker, EndpointAsker, EngineAsker
from covervlm.server.core.caller import CallerLimits, Callers, InFlight
from covervlm.server.core.engine import ChecksImages, Engine, HasVisionTower
from covervlm.server.core.generation import PruningPolicy
from covervlm.server.engines.registry import clip_location
from covervlm.server.forecast.forecaster import Forecaster
from covervlm.server.limits.adaptive_budget import AdaptiveBudget
from covervlm.server.limits.hosts import Hosts, is_loopback
from covervlm.server.limits.keys import Keys
from covervlm.server.media.addresses import AddressPolicy
from covervlm.server.media.decoding import ImageLimits
from covervlm.server.media.fetch import Fetcher, FetchLimits
from covervlm.server.media.images import ImageLoader
from covervlm.server.media.video import VideoLimits, VideoLoader
from covervlm.server.settings import Settings
from covervlm.server.shadow.labels import budget_name
from covervlm.server.shadow.shadows import ShadowConfig, Shadows
from covervlm.server.telemetry.metrics import Metrics
from covervlm.server.telemetry.shadow_metrics import ShadowMetrics
from covervlm.server.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService

log = logging.getLogger(__name__)

Loader = TypeVar("Loader", bound=ImageLoader)


def build_clip(settings: Settings, engine: Engine) -> "ClipService | None":
    """Not yet started; None where the settings name no CLIP model. torch is imported here."""
    path = clip_location(settings)
    if path is None:
        if settings.clip_model == "auto":
            log.info("no CLIP model: no embeddings, labels or clusters; --clip-model FOLDER or HUB_ID turns them on")
        return None
    from covervlm.server.clip.encoder.encoder import ClipEncoder
    from covervlm.server.clip.quotas import Quotas
    from covervlm.server.clip.service import ClipService
    from covervlm.server.clip.sessions import SnapshotInterval

    model = settings.clip_model
    name = Path(model).resolve().name if Path(model).is_dir() else model
    if model in ("auto", "demo"):
        name = "demo-clip"

    def load() -> ClipEncoder:
        encoder = ClipEncoder(path, device=settings.device)
        if isinstance(engine, HasVisionTower) and engine.vision_tower is not None:
            freed = encoder.share_weights(engine.vision_tower)
            log.info("the CLIP model shares %d bytes of weights with the served model", freed)
        return encoder

    quotas = Quotas(
        classifiers=settings.key_classifiers,
        streams=settings.key_streams,
        unfinished_jobs=settings.key_unfinished_jobs,
        bytes=int(settings.key_stored_bytes),
    )
    interval = SnapshotInterval(settings.snapshot_images, settings.snapshot_seconds)
    return ClipService(load, settings.data_dir or default_data_folder(), name=name, quotas=quotas, interval=interval)


def default_data_folder() -> Path:
    """Where the XDG base directory specification puts an application's data."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "covervlm"


def build_images(settings: Settings, kind: type[Loader]) -> Loader:
    """A loader of this kind."""
    fetch = None
    if settings.remote_media:
        fetch = Fetcher(
            AddressPolicy(settings.allowed_media_networks, settings.allowed_media_hosts),
            FetchLimits(settings.max_media_redirects, settings.media_timeout, settings.media_read_timeout),
        )
    return kind(
        ImageLimits(int(settings.max_image_bytes), settings.max_image_pixels),
        threads=settings.media_threads,
        max_pending=settings.max_images * (settings.max_running + settings.max_waiting),
        fetch=fetch,
        folder=settings.allowed_media_dir,
    )


def build_forecast(settings: Settings, engine: Engine) -> tuple[Forecaster, AdaptiveBudget | None]:
    """Not yet started. They need each other: what the server bears shows in its queue, and the budget may anticipate.

    The budget's floor is reached when half as many requests wait as may decode at once.
    """
    budgets, budget = settings.budget_range, None
    forecaster = Forecaster(
        settings.data_dir or default_data_folder(),
        crowded=lambda: None if budget is None else budget.crowded(engine.stats().waiting),
    )
    if budgets is not None:
        excess = forecaster.excess if settings.anticipate else lambda: 0.0
        budget = AdaptiveBudget(budgets, full_queue=settings.max_running // 2, excess=excess)
    return forecaster, budget


def build_shadows(
    settings: Settings, engine: Engine, memory: InFlight, metrics: Metrics, budget: AdaptiveBudget | None
) -> Shadows | None:
    """Not yet started; None where no answer is compared. Budgets of the settings have names in the metrics."""
    if not settings.shadow:
        return None
    policies = [
        PruningPolicy(keep_tokens=count) for count in (*settings.budget_aliases, *(budget.levels if budget else ()))
    ]
    policies.append(chat_defaults(settings).policy)
    config = ShadowConfig(
        settings.shadow,
        settings.shadow_seed,
        settings.shadow_waiting,
        int(settings.shadow_bytes),
        frozenset(map(budget_name, policies)),
    )
    observer = ShadowMetrics(metrics.registry)
    shadows = Shadows(engine, memory, observer, config)
    observer.watch(shadows.__len__, lambda: shadows.bytes)
    return shadows


def add_middleware(
    app: FastAPI,
    settings: Settings,
    keys: Keys,
    metrics: Metrics,
    tracing: Tracing | None,
    memory: InFlight,
    drain: Drain,
    forecaster: Forecaster,
    shadows: Shadows | None,
) -> None:
    """The one added last is outermost."""
    limits = CallerLimits(
        settings.key_requests_per_minute, settings.key_concurrent_requests, settings.key_images_per_minute
    )
    app.add_middleware(
        Admission,
        drain=drain,
        keys=keys,
        metrics_token=settings.metrics_token.get_secret_value() if settings.metrics_token else None,
        callers=Callers(limits, memory),
        memory=memory,
        seconds=settings.request_timeout,
        expected=nullcontext if shadows is None else shadows.expected,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_middleware(
        Boundary,
        metrics=metrics,
        count=forecaster.count,
        tracing=tracing,
        hosts=Hosts(settings.allowed_hosts, local=is_loopback(settings.host)),
        max_body_bytes=int(settings.max_body_bytes),
        receive_timeout=settings.receive_timeout,
        keeps_content=settings.log_content,
    )


def chat_defaults(settings: Settings) -> ChatDefaults:
    policy = PruningPolicy(
        settings.method, keep_tokens=settings.keep_tokens, keep_ratio=settings.keep_ratio, recipe=settings.recipe
    )
    return ChatDefaults(settings.model_name, policy, settings.max_images, settings.tool_format)


def build_preparation(
    settings: Settings, engine: Engine, images: ImageLoader, asker: Asker, budget: AdaptiveBudget | None
) -> Preparation:
    limits = VideoLimits(settings.max_video_frames, int(settings.max_video_bytes), settings.max_video_pixels)
    agent = Agent(asker, settings.agent_tokens, settings.agent_timeout)
    if isinstance(engine, ChecksImages):
        images = images.within(engine.check_image)
    return Preparation(engine, chat_defaults(settings), images, VideoLoader(images, limits), agent, budget)


def build_asker(settings: Settings, engine: Engine) -> Asker:
    """The agent's endpoint where one is given, else the served model itself."""
    if settings.agent_url is None:
        return EngineAsker(engine)
    key = settings.agent_api_key.get_secret_value() if settings.agent_api_key else None
    return EndpointAsker(settings.agent_url, settings.agent_model, key)


def add_routes(
    app: FastAPI,
    settings: Settings,
    engine: Engine,
    clip_service: "ClipService | None",
    images: ImageLoader,
    asker: Asker,
    prepare: Preparation,
    metrics: Metrics,
    forecaster: Forecaster,
    shadows: Shadows | None,
) -> None:
    budgets = settings.budget_range
    adaptive = None if budgets is None else (budgets.floor, budgets.ceiling)
    policy = chat_defaults(settings).policy
    fingerprint = Fingerprint(engine, settings.model, policy)
    conversation = Conversation(engine, prepare, metrics, shadows)
    routers = [
        chat.router(conversation, fingerprint),
        completions.router(engine, prepare, metrics, fingerprint),
        tokens.router(engine, prepare),
        messages.router(conversation),
        responses.router(conversation),
        models.router(engine, chat_defaults(settings), settings.budget_aliases, adaptive, clip_service),
        operations.router(engine, metrics),
        forecast.router(forecaster),
        playground.router(engine, settings.model_name, settings.method),
    ]
    routers += [clip.absent()] if clip_service is None else clip.routers(clip_service, images, asker)
    for router in routers:
        # Not include_router, which builds every route's models again at the first request.
        app.router.routes.extend(router.routes)
