"""A CLIP or SigLIP dual encoder from a transformers checkpoint: images and texts to unit vectors in one space."""

import copy
import threading
from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from covervlm.server.clip.prompt_tower import PromptTower
from covervlm.server.clip.templates import ENSEMBLE, check_class_names, check_templates, prompts


class TextTooLong(ValueError):
    """A text with more tokens than the model reads; `index` is its place in the list."""

    def __init__(self, index: int, tokens: int, limit: int) -> None:
        super().__init__(f"the text has {tokens} tokens; this model reads {limit} at most")
        self.index = index


class ClipEncoder:
    """All methods but `preprocess` and `prompt_tower` belong to one thread; those two may be called from any.

    Computes in float32. Results are on the CPU, whatever the device.
    """

    def __init__(self, path: str, *, device: str = "cpu", trust_remote_code: bool = False) -> None:
        """Load from a local folder or a hub id, safetensors only. ValueError for what is no dual encoder."""
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
            raise ValueError(f"{path} is no CLIP or SigLIP checkpoint: it is a {config.model_type!r} model")
        model = AutoModel.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code
        )
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise ValueError(f"{path} is no CLIP or SigLIP checkpoint: it does not embed images and texts alike")
        self.device = torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        # PIL rather than torchvision: the same pixels as training on every machine, and no further dependency.
        self._image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        self._copies = threading.local()
        self._copying = threading.Lock()
        self.text_limit = int(config.text_config.max_position_embeddings)
        # SigLIP reads its answer at the last position and was trained with every text padded to the full length.
        self._padding = "max_length" if config.model_type.startswith("siglip") else True
        scale = getattr(model, "logit_scale", None)
        self.temperature = 0.01 if scale is None else 1 / float(scale.detach().exp())
        self.dimensions = self.embed_texts(["a"])[0].shape[1]

    def preprocess(self, image: Image) -> Tensor:
        """pixel_values (3, H, W) float32 of one RGB image."""
        if not hasattr(self._copies, "image_processor"):
            with self._copying:
                self._copies.image_processor = copy.deepcopy(self._image_processor)
        return self._copies.image_processor(image, return_tensors="pt").pixel_values[0]

    @torch.inference_mode()
    def embed_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """Preprocessed images to (n, d) float32, L2-normalised."""
        batch = torch.stack(list(pixels)).to(self.device)
        return normalize(_pooled(self.model.get_image_features(pixel_values=batch)), dim=1).cpu()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """(n, d) float32, L2-normalised, and the number of tokens of each text. Raises TextTooLong."""
        counts = [len(ids) for ids in self.tokenizer(list(texts)).input_ids]
        for index, count in enumerate(counts):
            if count > self.text_limit:
                raise TextTooLong(index, count, self.text_limit)
        inputs = self.tokenizer(
            list(texts), padding=self._padding, max_length=self.text_limit, truncation=True, return_tensors="pt"
        )
        names = [name for name in ("input_ids", "attention_mask") if name in inputs]
        features = _pooled(self.model.get_text_features(**{name: inputs[name].to(self.device) for name in names}))
        return normalize(features, dim=1).cpu(), counts

    def class_proxies(self, names: Sequence[str], templates: Sequence[str] = ENSEMBLE, batch_size: int = 256) -> Tensor:
        """(d, K) float32 with normalised columns: the mean embedding of each name over the templates.

        ValueError for names or templates that make no classifier; TextTooLong.
        """
        check_class_names(names)
        check_templates(templates)
        texts = prompts(names, templates)
        parts = [self.embed_texts(texts[i : i + batch_size])[0] for i in range(0, len(texts), batch_size)]
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
        return PromptTower(self.model, self.tokenizer, prompt, padding_length=self._padding_length)

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
