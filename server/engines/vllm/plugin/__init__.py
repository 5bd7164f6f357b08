"""Pruning inside vLLM's model path: registers model classes that replace vLLM's own, in every vLLM process."""

from importlib.metadata import version
from importlib.util import find_spec

from covervlm.server.models import registry

LOWEST, BELOW = (0, 32), (0, 34)
"""Versions of vLLM that keep the contract in `tests/vllm/contract.py`: from LOWEST, below BELOW."""

ARCHITECTURES = {
    architecture: f"{__name__}.{module}:Pruning{name}"
    for architecture, (path, name) in registry.ARCHITECTURES.items()
    if find_spec(f"{__name__}.{(module := path.rpartition('.')[2])}")
}
"""Of the known architectures, those with a class for vLLM."""


class UnsupportedVllm(RuntimeError):
    """The installed vLLM is not one that the plugin is written for."""


def register() -> None:
    """Entry point of `vllm.general_plugins`. Raises UnsupportedVllm, which ends the process that loads the plugin.

    vLLM swallows a plugin that cannot be imported and then serves without it, so nothing that may fail is imported
    here.
    """
    from vllm import ModelRegistry, __version__
    from vllm.logger import init_logger

    check_version(__version__)
    for architecture, path in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, path)
    # vLLM puts the process's name and id in front, which shows where the plugin is and where it is not.
    init_logger("vllm.plugins.covervlm").info("covervlm %s prunes images in this process", version("covervlm"))


def check_version(vllm: str) -> None:
    """Raises UnsupportedVllm unless the version lies in the supported range."""
    parts = vllm.split(".")
    release = tuple(int(part) for part in parts[:2] if part.isdigit())
    if len(release) < 2 or not LOWEST <= release < BELOW:
        wanted = f">={'.'.join(map(str, LOWEST))},<{'.'.join(map(str, BELOW))}"
        raise UnsupportedVllm(
            f"covervlm {version('covervlm')} prunes inside vLLM {wanted}, but vLLM {vllm} is installed. Install a "
            "supported version, or set VLLM_PLUGINS to names other than covervlm to run vLLM without pruning."
        )
