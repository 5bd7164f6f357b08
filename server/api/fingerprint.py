"""OpenAI's `system_fingerprint`: it changes whenever the same request might be answered differently."""

import hashlib
from importlib.metadata import version

from covervlm.server.core.engine import Engine


class Fingerprint:
    """The same for the same release, model, engine and configuration, on every replica and after every restart."""

    def __init__(self, engine: Engine, *configured: object) -> None:
        self._engine = engine
        self._configured = configured
        self._known: str | None = None

    def __call__(self) -> str:
        """Raises EngineUnavailable before the model is loaded."""
        if self._known is None:
            of = (version("covervlm"), self._engine.info, self._configured)
            self._known = f"fp_{hashlib.sha256(repr(of).encode()).hexdigest()[:12]}"
        return self._known
