"""What covervlm's own engine asks of vLLM's workers, as a worker extension (`worker_extension_cls`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from covervlm.server.engines.vllm.plugin.model import PruningModel

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class WorkerExtension:
    """Mixed into vLLM's worker; called by `collective_rpc`, so results are plain values."""

    model_runner: "GPUModelRunner"

    def covervlm_prunes(self) -> bool:
        """Whether this worker runs one of the pruning model classes."""
        return isinstance(self.model_runner.get_model(), PruningModel)

    def covervlm_chosen(self, digests: Sequence[str]) -> list[tuple[list[int], float, float] | None]:
        """Indices, coverage and milliseconds of recent selections by their plans' digests; None where forgotten."""
        recent = self.model_runner.get_model().selections.recent
        found = [recent.get(digest) for digest in digests]
        return [None if one is None else (list(one.indices), one.coverage, one.milliseconds) for one in found]

    def covervlm_cache(self) -> tuple[int, int, int]:
        """Bytes, hits and misses of the cache of tower outputs."""
        cache = self.model_runner.get_model().selections.cache
        return cache.bytes, cache.hits, cache.misses
