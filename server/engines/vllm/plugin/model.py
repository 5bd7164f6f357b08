"""What the pruning model classes share: what is whole goes vLLM's way, all else through tower, cache and selection."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from vllm.config import VllmConfig

from covervlm.kernels import warm_up
from covervlm.pruners import get_pruner
from covervlm.server.engines.vllm.plugin.plan import FIELDS, Plan
from covervlm.server.engines.vllm.plugin.policy import server_wide
from covervlm.server.engines.vllm.plugin.selection import Selections, in_batches
from covervlm.server.models.base import ImageTokens, Layout
from covervlm.server.models.registry import architecture_of


class PruningModel(nn.Module):
    """Mixed into a model class of vLLM's; a subclass says how to run its tower (`_look`)."""

    if TYPE_CHECKING:  # vLLM's classes bring towers, projectors and configurations of many types

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self._tokens_at_once = vllm_config.scheduler_config.max_num_encoder_input_tokens
        warm_up(vllm_config.device_config.device_type, dtype=vllm_config.model_config.dtype)
        self._config, self._cache_bytes = config, server_wide(config).feature_cache_bytes

    @cached_property
    def selections(self) -> Selections:
        """Made when first needed: vLLM also uses these classes for checkpoints that are never pruned, as Pixtral's."""
        return Selections(architecture_of(self._config), self._embed_words, self._cache_bytes)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """One (tokens, d) tensor per image or clip, of the kept tokens where it has a plan."""
        packed = next((kwargs.pop(field) for field in FIELDS.values() if field in kwargs), None)
        if packed is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        plans = [Plan.from_tensor(row) for row in packed]
        embeddings: dict[int, Tensor] = {}
        whole = [i for i, plan in enumerate(plans) if not plan.prunes]
        pruned = [i for i, plan in enumerate(plans) if plan.prunes]
        # vLLM makes clips of unequal lengths three-dimensional where they come together.
        together = [whole] if whole and not plans[whole[0]].frames else [[i] for i in whole]
        for some in together:
            unpruned = super().embed_multimodal(**self._only(kwargs, some))  # type: ignore[misc]
            embeddings.update((i, one.flatten(0, -2)) for i, one in zip(some, unpruned, strict=True))
        # vLLM admits as many images into a step as their kept tokens allow, maybe ten times what it has memory for.
        sizes = [layout.total for layout in self._layouts([plans[i] for i in pruned])]
        for batch in in_batches(pruned, sizes, self._tokens_at_once):
            kept = self._pruned([plans[i] for i in batch], [self._only(kwargs, [i]) for i in batch])
            embeddings.update(zip(batch, kept, strict=True))
        return [embeddings[i] for i in range(len(plans))]

    def _pruned(self, plans: Sequence[Plan], inputs: Sequence[dict[str, Any]]) -> list[Tensor]:
        missing = self.selections.missing(plans)
        looked: list[tuple[Plan, ImageTokens]] = []
        for cls_attention in (False, True):
            group = [i for i in missing if get_pruner(plans[i].method).uses_cls_attention == cls_attention]
            if group:
                wanted = [plans[i] for i in group]
                looked += zip(wanted, self._look([inputs[i] for i in group], wanted, cls_attention), strict=True)
        results = self.selections.run(plans, looked, next(self.parameters()).device)
        return [self._finished(*kept, plan) for plan, kept in zip(plans, results, strict=True)]

    def _look(self, images: Sequence[dict[str, Any]], plans: Sequence[Plan], cls_attention: bool) -> list[ImageTokens]:
        """Run tower and projector over images or clips in one batch; each entry holds the inputs of one of them."""
        raise NotImplementedError

    def _layouts(self, plans: Sequence[Plan]) -> list[Layout]:
        return [self.selections.layout(plan) for plan in plans]

    def _only(self, kwargs: dict[str, Any], wanted: Sequence[int]) -> dict[str, Any]:
        """The inputs of some of a batch's images; every field is batched by image."""
        return {
            name: value[list(wanted)] if isinstance(value, Tensor) else [value[i] for i in wanted]
            for name, value in kwargs.items()
        }

    def _finished(self, tokens: Tensor, positions: Tensor, plan: Plan) -> Tensor:
        """What the model runner gets for a pruned image."""
        return tokens

    def _embed_words(self, ids: Tensor) -> Tensor:
        return self.get_language_model().embed_input_ids(ids)


def pixels_of(inputs: dict[str, Any]) -> Any:
    """The pixels among the inputs of an image or of a clip."""
    return next(inputs[name] for name in ("pixel_values", "pixel_values_videos") if name in inputs)
