"""Vision-language models that read only the vision tokens that matter: loaded here, or asked over HTTP."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covervlm.clients import AsyncClient, Client
    from covervlm.server.local import Model, load

    __version__: str

__all__ = ["AsyncClient", "Client", "Model", "__version__", "load"]

_HOMES = {
    "AsyncClient": "covervlm.clients",
    "Client": "covervlm.clients",
    "Model": "covervlm.server.local",
    "load": "covervlm.server.local",
}


def __getattr__(name: str) -> Any:
    # Lazy, because each needs packages that the others do not: torch, httpx, and neither.
    if name == "__version__":
        from importlib.metadata import version

        return version("covervlm")
    if name in _HOMES:
        from importlib import import_module

        try:
            return getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing == "covervlm":
                raise
            advice = f"covervlm.{name} needs {missing}; get it with: pip install 'covervlm[server]'"
            raise ModuleNotFoundError(advice, name=error.name) from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
