"""The CLIP service that the settings ask for; torch is imported when it is built."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from covervlm.server.engines.base import Engine
from covervlm.server.settings import Settings

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService
    from covervlm.server.clip.words import WordSource

log = logging.getLogger(__name__)


def build_clip(settings: Settings, engine: Engine) -> "ClipService | None":
    """Not yet started; None where the settings name no CLIP model."""
    model = settings.clip_model
    if model == "auto":
        model = "demo" if settings.model == "demo" else "none"
    if model == "none":
        return None
    from covervlm.server.clip.encoder import ClipEncoder
    from covervlm.server.clip.quotas import Quotas
    from covervlm.server.clip.service import ClipService
    from covervlm.server.clip.sessions import SnapshotInterval
    from covervlm.server.demo import clip_path

    path = str(clip_path()) if model == "demo" else model
    name = "demo-clip" if model == "demo" else Path(model).resolve().name if Path(model).is_dir() else model
    folder = settings.data_dir or default_data_folder()

    def load() -> ClipEncoder:
        encoder = ClipEncoder(path, device=settings.device)
        tower = getattr(engine, "vision_tower", None)
        if tower is not None:
            freed = encoder.share_weights(tower)
            log.info("the CLIP model shares %d bytes of weights with the served model", freed)
        return encoder

    quotas = Quotas(
        classifiers=settings.key_classifiers,
        sessions=settings.key_sessions,
        unfinished_jobs=settings.key_unfinished_jobs,
        bytes=int(settings.key_stored_bytes),
    )
    interval = SnapshotInterval(settings.snapshot_images, settings.snapshot_seconds)
    return ClipService(load, folder, name=name, quotas=quotas, interval=interval)


def build_words(engine: Engine, settings: Settings) -> "WordSource":
    """Where reference words for a clustering come from: the agent's endpoint where there is one, else the model."""
    from covervlm.server.clip.words import words_from_endpoint, words_from_engine

    if settings.agent_url is None:
        return words_from_engine(engine)
    key = settings.agent_api_key
    return words_from_endpoint(settings.agent_url, settings.agent_model, key.get_secret_value() if key else None)


def default_data_folder() -> Path:
    """Where the XDG base directory specification puts an application's data."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "covervlm"
