"""Every engine by name; an engine's module, and torch with it, is imported when the engine is built."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from covervlm.server.core.engine import Engine
from covervlm.server.settings import Settings, SettingsError

log = logging.getLogger(__name__)

_ENGINES: dict[str, tuple[str, str]] = {
    "transformers": ("covervlm.server.engines.embedded.engine", "TransformersEngine"),
    "vllm": ("covervlm.server.engines.vllm.engine", "VllmEngine"),
}

_FLOAT32 = ("auto", "float32")
"""Values of --dtype that mean float32 on a CPU."""


class StartupError(Exception):
    """The server cannot start; the message is one line."""


def engine_names() -> list[str]:
    """Names that `--engine` accepts."""
    return ["auto", *_ENGINES]


def build_engine(settings: Settings) -> Engine:
    """The engine that the settings ask for, not yet started; SettingsError for a name or value that cannot work."""
    name = _automatic(settings) if settings.engine == "auto" else settings.engine
    if name not in _ENGINES:
        raise SettingsError(f"engine: there is no engine {name!r}; choose one of {', '.join(engine_names())}")
    from covervlm.pruners import pruner_names  # imports torch

    offered = settings.pruning_methods
    for option, method in (("method", settings.method), *(("pruning_methods", method) for method in offered)):
        if method not in pruner_names():
            raise SettingsError(
                f"{option}: there is no pruning method {method!r}; choose one of {', '.join(pruner_names())}"
            )
    if offered and settings.method not in (*offered, "none"):
        raise SettingsError(f"method: {settings.method} is not among --pruning-methods {','.join(offered)}")
    module_name, class_name = _ENGINES[name]
    if name == "vllm" and find_spec("vllm") is None:
        raise SettingsError("engine: vLLM is not installed; install covervlm[vllm]")
    module: Any = import_module(module_name)
    config = _CONFIGS[name](module, settings)
    engine: Engine = getattr(module, class_name)(config)
    return engine


def _transformers_config(module: Any, settings: Settings) -> Any:
    if settings.vllm_args:
        raise SettingsError(
            f"vllm_args: {settings.vllm_args} is for --engine vllm, but the engine here is transformers"
        )
    if settings.quantization != "none" and (settings.device.startswith("cuda") or settings.dtype not in _FLOAT32):
        raise SettingsError(
            f"quantization: {settings.quantization} is for float32 on a CPU, "
            f"not for --device {settings.device} with --dtype {settings.dtype}"
        )
    if settings.runtime == "openvino":
        _check_openvino(settings)
    return module.TransformersEngineConfig(
        model_path=_model_path(settings),
        device=settings.device,
        dtype=settings.dtype,
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        feature_cache_bytes=int(settings.feature_cache_bytes),
        prefix_cache_bytes=int(settings.prefix_cache_bytes),
        threads=settings.threads,
        methods=settings.pruning_methods,
        quantization=settings.quantization,
        runtime=settings.runtime,
        clip_path=clip_location(settings),
    )


def _check_openvino(settings: Settings) -> None:
    if settings.device.startswith("cuda") or settings.dtype not in _FLOAT32 or settings.quantization != "none":
        others = f"--device {settings.device}, --dtype {settings.dtype} and --quantization {settings.quantization}"
        raise SettingsError(f"runtime: openvino is for float32 on a CPU, not for {others}")
    if find_spec("openvino") is None:
        raise SettingsError("runtime: OpenVINO is not installed; install covervlm[openvino]")


def _vllm_config(module: Any, settings: Settings) -> Any:
    if settings.quantization != "none":
        raise SettingsError(
            f"quantization: {settings.quantization} is for --engine transformers on a CPU; "
            "vLLM has its own, --vllm-args='--quantization NAME'"
        )
    if settings.runtime != "torch":
        raise SettingsError(f"runtime: {settings.runtime} is for --engine transformers on a CPU; leave the option out")
    return module.VllmEngineConfig(
        model_path=_model_path(settings),
        dtype=settings.dtype,
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        feature_cache_bytes=int(settings.feature_cache_bytes),
        vllm_args=settings.vllm_args,
        methods=settings.pruning_methods,
    )


_CONFIGS: dict[str, Callable[[Any, Settings], Any]] = {"transformers": _transformers_config, "vllm": _vllm_config}


def _automatic(settings: Settings) -> str:
    """vLLM where it is installed and has a CUDA device to run on, and no other device is asked for."""
    if find_spec("vllm") is None or settings.device not in ("auto", "cuda"):
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


@contextmanager
def startup_failures(what: str) -> Iterator[None]:
    """Turns whatever goes wrong inside into a StartupError of one line."""
    try:
        yield
    except Exception as error:
        # Checkpoints, devices and memory fail in many ways; the first line says which, the traceback helps a developer.
        log.debug("%s", what, exc_info=error)
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise StartupError(f"{what}: {reason}") from None


def _model_path(settings: Settings) -> str:
    """`demo` is the checkpoint in the package; anything else is a folder or a hub id, as transformers reads it."""
    from covervlm.server.demo import model_path

    return str(model_path()) if settings.model == "demo" else checked_location("model", settings.model)


def clip_location(settings: Settings) -> str | None:
    """The CLIP checkpoint that the settings name; None where they name none."""
    from covervlm.server.demo import clip_path

    model = settings.clip_model
    if model == "auto":
        model = "demo" if settings.model == "demo" else "none"
    if model == "none":
        return None
    return str(clip_path()) if model == "demo" else checked_location("clip_model", model)


def checked_location(option: str, model: str) -> str:
    """The folder or the hub id to load for an option; SettingsError where there is none."""
    from covervlm.server.models.location import located

    try:
        return located(model)
    except ValueError as error:
        raise SettingsError(f"{option}: {error}") from None
