"""Options of the vLLM engine: ours, and any of vLLM's own, checked by vLLM's own parser before a model is loaded."""

import shlex
from dataclasses import dataclass
from typing import Any, NoReturn

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from covervlm.server.engines.vllm.plugin.plan import FIELD
from covervlm.server.settings import SettingsError


@dataclass(frozen=True)
class VllmEngineConfig:
    """Which model to serve, how much to run at once, and further options in vLLM's own spelling.

    vllm_args: a command line, e.g. "--tensor-parallel-size 2 --gpu-memory-utilization 0.85"; it wins over the others.
    feature_cache_bytes: host memory of each worker for tower outputs of images seen before.
    methods: pruning methods that requests may name, all where it is empty.
    """

    model_path: str
    dtype: str = "auto"
    max_running: int = 32
    max_waiting: int = 256
    feature_cache_bytes: int = 512 * 2**20
    preprocess_workers: int = 2
    vllm_args: str = ""
    methods: tuple[str, ...] = ()


class _Parser(FlexibleArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"vllm_args: {message}")


def engine_args(config: VllmEngineConfig) -> AsyncEngineArgs:
    """vLLM's arguments for a configuration; SettingsError where vLLM knows no such option or value."""
    # A CPU computes half precision several times slower than float32.
    dtype = "float32" if config.dtype == "auto" and current_platform.is_cpu() else config.dtype
    own = ["--model", config.model_path, "--dtype", dtype, "--max-num-seqs", str(config.max_running)]
    # The embedded engine's own backend, and the only one of vLLM's that refuses what it cannot enforce.
    own += ["--structured-outputs-config.backend", "guidance"]
    try:
        given = shlex.split(config.vllm_args)
    except ValueError as error:
        raise SettingsError(f"vllm_args: {error}") from None
    parser = AsyncEngineArgs.add_cli_args(_Parser(prog="vllm_args", add_help=False, exit_on_error=False))
    try:
        parsed = parser.parse_args([*own, *given])
        arguments = AsyncEngineArgs.from_cli_args(parsed)
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"vllm_args: {error}") from None
    if arguments.model != config.model_path:
        raise SettingsError("vllm_args: name the model with covervlm's own --model")
    if arguments.worker_extension_cls:
        raise SettingsError("vllm_args: covervlm sets --worker-extension-cls itself")
    arguments.worker_extension_cls = "covervlm.server.engines.vllm.plugin.worker.WorkerExtension"
    arguments.hf_overrides = _with_cache(arguments.hf_overrides, config.feature_cache_bytes)
    return arguments


def _with_cache(overrides: Any, cache_bytes: int) -> dict[str, Any]:
    if not isinstance(overrides, dict):
        raise SettingsError("vllm_args: --hf-overrides should be a JSON object")
    return {**overrides, FIELD: {**overrides.get(FIELD, {}), "feature_cache_bytes": cache_bytes}}
