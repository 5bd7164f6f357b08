"""What the pruning model classes share: unpruned images go vLLM's way, others through tower, cache and selection."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

from covervlm.kernels import warm_up
from covervlm.pruners import get_pruner
from covervlm.server.vllm_plugin.architecture import architecture_of
from covervlm.server.vllm_plugin.plan import FIELD, Plan
from covervlm.server.vllm_plugin.policy import server_wide
from covervlm.server.vllm_plugin.selection import Selections, TowerOutput, in_batches


class PruningModel(nn.Module):
    """Mixed into a model class of vLLM's; a subclass says how to run its tower (`_look`)."""

    if TYPE_CHECKING:  # vLLM's classes bring towers, projectors and configurations of many types

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self._tokens_at_once = vllm_config.scheduler_config.max_num_encoder_input_tokens
        warm_up(vllm_config.device_config.device_type, dtype=vllm_config.model_config.dtype)
        self.selections = Selections(
            architecture_of(config),
            embed=self._embed_words,
            cache_bytes=server_wide(config).feature_cache_bytes,
        )

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """One (tokens, d) tensor per image, of the kept tokens where the image has a plan."""
        packed = kwargs.pop(FIELD, None)
        if packed is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        plans = [Plan.from_tensor(row) for row in packed]
        embeddings: list[Tensor | None] = [None] * len(plans)
        whole = [i for i, plan in enumerate(plans) if not plan.prunes]
        pruned = [i for i, plan in enumerate(plans) if plan.prunes]
        if whole:
            unpruned = super().embed_multimodal(**self._only(kwargs, whole))  # type: ignore[misc]
            for i, embedding in zip(whole, unpruned, strict=True):
                embeddings[i] = embedding
        if pruned:
            # vLLM lets as many images into a step as their kept tokens allow, maybe ten times what it has memory for.
            sizes = [self.selections.layout(plans[i]).total for i in pruned]
            for batch in in_batches(pruned, sizes, self._tokens_at_once):
                kept = self._pruned([plans[i] for i in batch], [self._only(kwargs, [i]) for i in batch])
                for i, embedding in zip(batch, kept, strict=True):
                    embeddings[i] = embedding
        return embeddings

    def _pruned(self, plans: Sequence[Plan], inputs: Sequence[dict[str, Any]]) -> list[Tensor]:
        missing = self.selections.missing(plans)
        looked: list[tuple[Plan, TowerOutput]] = []
        for cls_attention in (False, True):
            group = [i for i in missing if get_pruner(plans[i].method).uses_cls_attention == cls_attention]
            if group:
                outputs = self._look([inputs[i] for i in group], cls_attention)
                looked += zip([plans[i] for i in group], outputs, strict=True)
        results = self.selections.run(plans, looked, next(self.parameters()).device)
        return [self._finished(*kept, plan) for plan, kept in zip(plans, results, strict=True)]

    def _look(self, images: Sequence[dict[str, Any]], cls_attention: bool) -> list[TowerOutput]:
        """Run tower and projector over images in one batch; each entry holds the inputs of one image."""
        raise NotImplementedError

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


class ClsAttention:
    """Attention of a CLIP tower's CLS token over the patches in its penultimate layer, mean over heads.

    A context manager that listens while the tower runs; only the CLS row is computed, from that layer's projections.
    """

    def __init__(self, tower: Any, layers: int) -> None:
        """layers: how many the checkpoint's tower has; vLLM leaves out those past the feature layer."""
        self._layer = tower.vision_model.encoder.layers[layers - 2]
        self.rows: Tensor | None = None

    def __enter__(self) -> "ClsAttention":
        self._hook = self._layer.register_forward_pre_hook(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _listen(self, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        """(B, patches) from hidden states (B, 1 + patches, width); with tensor parallelism each rank has some heads."""
        attention = layer.self_attn
        qkv, _ = attention.qkv_proj(layer.layer_norm1(inputs[0]))
        query, key, _ = qkv.chunk(3, dim=-1)
        batch, length, width = key.shape
        size = attention.head_dim
        query = query[:, 0].view(batch, width // size, 1, size)
        key = key.view(batch, length, width // size, size).transpose(1, 2)
        rows = ((query @ key.transpose(2, 3)).float() * attention.scale).softmax(-1).sum(1)[:, 0, 1:]
        if attention.tp_size > 1 and get_tensor_model_parallel_world_size() > 1:
            rows = tensor_model_parallel_all_reduce(rows.contiguous())
        self.rows = rows / attention.num_heads
