"""A CLIP or SigLIP dual encoder from a transformers checkpoint: images and texts to unit vectors in one space."""

import copy
import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoTokenizer

# Imported from its module: older releases of transformers refuse the public name where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from covervlm.server.clip.prompt_tower import PromptTower
from covervlm.server.clip.templates import ENSEMBLE, check_class_names, check_templates, prompts


class TextTooLong(ValueError):
    """A text with more tokens than the model reads; `index` is its place in the list."""

    def __init__(self, index: int, tokens: int, limit: int) -> None:
        super().__init__(f"the text has {tokens} tokens; this model reads {limit} at most")
        self.index = index


class ClipEncoder:
    """`preprocess`, `tokenize` and `prompt_tower` may be called from any thread; the rest belongs to one thread.

    `temperature` is the model's own, by which cosines become probabilities. `fingerprint` tells checkpoints apart.
    Computes in float32. Results are on the CPU, whatever the device.
    """

    def __init__(self, path: str, *, device: str = "auto", trust_remote_code: bool = False) -> None:
        """Load from a local folder or a hub id, safetensors only. ValueError for what is no dual encoder."""
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
            raise ValueError(f"{path} is no CLIP or SigLIP checkpoint: it is a {config.model_type!r} model")
        if config.model_type == "siglip2":
            raise ValueError(f"{path} takes images of any shape (SigLIP 2 NaFlex), which is not supported")
        model, loading = AutoModel.from_pretrained(
            path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(f"{path}: {len(missing)} weights of the model are missing, e.g. {missing[0]}")
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise ValueError(f"{path} is no CLIP or SigLIP checkpoint: it does not embed images and texts alike")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        # PIL rather than torchvision: the same pixels as training on every machine, and no further dependency.
        self._prototypes = {
            "tokenizer": AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code),
            "image_processor": AutoImageProcessor.from_pretrained(path, backend="pil"),
        }
        self._copies = threading.local()
        self._copying = threading.Lock()
        self.text_limit = int(config.text_config.max_position_embeddings)
        # SigLIP was trained with every text padded to the full length, and reads the padding too.
        siglip = config.model_type.startswith("siglip")
        self._padding: str | bool = "max_length" if siglip else True
        self._text_inputs = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        scale = getattr(model, "logit_scale", None)
        self.temperature = 0.01 if scale is None else 1 / float(scale.detach().exp())
        self.dimensions = self.embed_texts(["a"]).shape[1]
        self.fingerprint = _fingerprint(self.model)

    def preprocess(self, image: Image) -> Tensor:
        """pixel_values (3, H, W) float32 of one RGB image."""
        return self._own("image_processor")(image, return_tensors="pt").pixel_values[0]

    def _own(self, name: str) -> Any:
        """This thread's copy of the tokenizer or the image processor: both keep mutable state."""
        if not hasattr(self._copies, name):
            with self._copying:
                setattr(self._copies, name, copy.deepcopy(self._prototypes[name]))
        return getattr(self._copies, name)

    @torch.inference_mode()
    def embed_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """Preprocessed images to (n, d) float32, L2-normalised."""
        batch = torch.stack(list(pixels)).to(self.device)
        return normalize(_pooled(self.model.get_image_features(pixel_values=batch)), dim=1).cpu()

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included. Raises TextTooLong."""
        ids: list[list[int]] = self._own("tokenizer")(list(texts)).input_ids
        for index, tokens in enumerate(ids):
            if len(tokens) > self.text_limit:
                raise TextTooLong(index, len(tokens), self.text_limit)
        return ids

    @torch.inference_mode()
    def embed_ids(self, ids: Sequence[list[int]]) -> Tensor:
        """Tokenized texts to (n, d) float32, L2-normalised."""
        inputs = self._own("tokenizer").pad(
            {"input_ids": list(ids)}, padding=self._padding, max_length=self._padding_length, return_tensors="pt"
        )
        names = [name for name in self._text_inputs if name in inputs]
        features = _pooled(self.model.get_text_features(**{name: inputs[name].to(self.device) for name in names}))
        return normalize(features, dim=1).cpu()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(n, d) float32, L2-normalised. Raises TextTooLong."""
        return self.embed_ids(self.tokenize(texts))

    def class_proxies(self, names: Sequence[str], templates: Sequence[str] = ENSEMBLE, batch_size: int = 256) -> Tensor:
        """(d, K) float32 with normalised columns: the mean embedding of each name over the templates.

        ValueError for names or templates that make no classifier; TextTooLong.
        """
        check_class_names(names)
        check_templates(templates)
        texts = prompts(names, templates)
        parts = [self.embed_texts(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
        means = torch.cat(parts).unflatten(0, (len(names), len(templates))).mean(dim=1)
        return normalize(means, dim=1).T.contiguous()

    @torch.inference_mode()
    def hidden_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """Preprocessed images to (n, d_v) float32: the vision tower's pooled output before `visual_projection`."""
        return _pooled(self.model.vision_model(pixel_values=torch.stack(list(pixels)).to(self.device))).cpu()

    def visual_projection(self) -> Tensor:
        """(d, d_v): from hidden to shared space; the identity where the model has no such layer (SigLIP)."""
        layer = getattr(self.model, "visual_projection", None)
        return torch.eye(self.dimensions) if layer is None else layer.weight.detach().clone().cpu()

    def prompt_tower(self, prompt: str) -> PromptTower:
        """The text tower for `prompt`, whose last word, `*`, is a free embedding; it shares the weights."""
        return PromptTower(self.model, self._own("tokenizer"), prompt, padding_length=self._padding_length)

    @property
    def _padding_length(self) -> int | None:
        return self.text_limit if self._padding == "max_length" else None

    def share_weights(self, tower: nn.Module) -> int:
        """Use the vision weights of an already loaded model where they are the same; returns the bytes freed.

        A LLaVA model carries a CLIP tower. Where every tensor it has in common with this encoder's tower is equal,
        both read the same memory from now on; the modules stay separate, so both may run at once.
        """
        theirs = {_tower_name(name): parameter for name, parameter in tower.named_parameters()}
        pairs = [
            (mine, theirs[_tower_name(name)])
            for name, mine in self.model.vision_model.named_parameters()
            if _tower_name(name) in theirs
        ]
        if not pairs or not all(_same(mine, other) for mine, other in pairs):
            return 0
        for mine, other in pairs:
            mine.data = other.data
        return sum(mine.numel() * mine.element_size() for mine, _ in pairs)


def _tower_name(name: str) -> str:
    return name.removeprefix("vision_model.")


def _same(mine: Tensor, other: Tensor) -> bool:
    alike = mine.dtype == other.dtype and mine.device == other.device and mine.shape == other.shape
    return alike and torch.equal(mine, other)


def _pooled(output: object) -> Tensor:
    """The embedding inside what a tower returns; remote code may return the bare tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]


def _fingerprint(model: nn.Module) -> str:
    """16 hex digits over a slice of every weight: embeddings of different checkpoints must not be mixed."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().flatten()[:64].cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
