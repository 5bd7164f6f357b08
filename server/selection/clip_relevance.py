"""How like a question CLIP finds an image's patches, by the text tower that was trained beside the model's tower."""

import logging
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from covervlm.server.core.errors import EngineUnavailable, InvalidRequest
from covervlm.server.models.base import Adapter

log = logging.getLogger(__name__)

_RELATED = 0.9
"""Cosine of two towers' weights from which on one is the other, maybe tuned since; apart, they have about 0."""

NO_CLIP = (
    "relevance 'clip' asks CLIP's text tower, which the embedded engine has for a LLaVA model with a CLIP tower where "
    "--clip-model names the checkpoint that the tower comes from; 'words' works with any model."
)


class ClipRelevance:
    """The text side of a CLIP checkpoint, loaded when it is first asked; may be used from any thread.

    The tower itself stays the model's: patches are the features that its projector reads, led through the checkpoint's
    last normalisation and projection. Computes in float32; texts on the CPU.
    """

    def __init__(self, path: str | None, adapter: Adapter) -> None:
        """path: folder or hub id of the checkpoint; None where none is named."""
        self._path, self._adapter = path, adapter
        self._loading = threading.Lock()
        self._model: Any = None
        self._tokenizer: Any = None
        self._fault = ""

    @torch.inference_mode()
    def text(self, question: str) -> Tensor:
        """(s, d) unit vectors of a question on the CPU, one for each stretch of it that the tower reads at once.

        s is 0 for a blank one. Raises InvalidRequest where the model's tower is not that of the checkpoint.
        """
        self._load()
        with self._loading:  # tokenizers keep state
            limit = self._model.config.text_config.max_position_embeddings
            inputs = self._tokenizer(
                question,
                max_length=limit,
                truncation=True,
                return_overflowing_tokens=True,
                padding=True,
                return_tensors="pt",
            )
        if not question.strip():
            return torch.zeros(0, self._model.config.projection_dim)
        output = self._model.get_text_features(inputs.input_ids, attention_mask=inputs.attention_mask)
        return normalize(output.pooler_output, dim=1)

    @torch.inference_mode()
    def cosines(self, features: Tensor, text: Tensor) -> Tensor:
        """(n,) float32: of vision features (n, d_v) the mean cosine to texts (s, d), s at least 1, in CLIP's space."""
        device = features.device
        norm, projection = self._model.vision_model.post_layernorm, self._model.visual_projection
        states = nn.functional.layer_norm(
            features.float(), features.shape[1:], norm.weight.to(device), norm.bias.to(device), norm.eps
        )
        return normalize(states @ projection.weight.to(device).T, dim=1) @ text.mean(dim=0).to(device)

    def _load(self) -> None:
        with self._loading:
            if self._model is None and not self._fault:
                try:
                    self._fault = self._loaded()
                except (OSError, ValueError):
                    log.exception("CLIP's text tower cannot be loaded")
                    raise EngineUnavailable("The CLIP model cannot be loaded; the server's log says why.") from None
            if self._fault:
                raise InvalidRequest(self._fault, param="vision_pruning.parameters.relevance", code="invalid_value")

    def _loaded(self) -> str:
        """What stands against the checkpoint, empty where nothing does."""
        if self._path is None or not isinstance(self._adapter.vision_tower, nn.Module):
            return NO_CLIP
        if not isinstance(self._adapter.model.config.vision_feature_layer, int):
            return "relevance 'clip' needs the features of one layer of the tower; this model joins several."
        if AutoConfig.from_pretrained(self._path).model_type != "clip":
            return NO_CLIP
        model = CLIPModel.from_pretrained(self._path, dtype=torch.float32, use_safetensors=True)
        model = model.eval().requires_grad_(False)
        if not related(model.vision_model, self._adapter.vision_tower):
            return "relevance 'clip' needs the CLIP checkpoint of this model's tower; --clip-model names another one."
        del model.vision_model.encoder, model.vision_model.embeddings
        self._model, self._tokenizer = model, AutoTokenizer.from_pretrained(self._path)
        return ""


def related(mine: nn.Module, theirs: nn.Module) -> bool:
    """Whether two vision towers have the same layers with weights of about the same direction."""
    others = {_bare(name): weight for name, weight in theirs.named_parameters()}
    pairs = [(weight, others.get(_bare(name))) for name, weight in mine.named_parameters() if weight.dim() > 1]
    return all(
        other is not None
        and weight.shape == other.shape
        and float(cosine_similarity(weight.flatten(), other.detach().cpu().float().flatten(), dim=0)) > _RELATED
        for weight, other in pairs
    )


def _bare(name: str) -> str:
    return name.removeprefix("vision_model.")
