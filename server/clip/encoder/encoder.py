"""A CLIP or SigLIP dual encoder from a transformers checkpoint: images and texts to unit vectors in one space."""

import copy
import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from tokenizers import normalizers
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoTokenizer

# Imported from its module: older releases of transformers refuse the public name where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from covervlm.server.clip.encoder.prompt_tower import PromptTower
from covervlm.server.models.pictures import Cost, crop_box, crop_cost, crop_pixels
from covervlm.server.models.processor import CHARACTERS_PER_TOKEN


class TextTooLong(ValueError):
    """A text with more tokens than the model reads; `index` is its place in the list."""

    def __init__(self, index: int, length: str, limit: int) -> None:
        super().__init__(f"the text has {length}; this model reads {limit} tokens at most")
        self.index = index


class ForeignTokens(ValueError):
    """Ids that this model's tokenizer does not make; `index` is their place in the list."""

    def __init__(self, index: int, frame: Sequence[int]) -> None:
        super().__init__(
            f"these are not token ids of this model's tokenizer, which begin with {frame[0]} and end with {frame[-1]}; "
            "send the text itself (in LangChain, set check_embedding_ctx_length=False)"
            if len(frame) > 1
            else "these are not token ids of this model's tokenizer; send the text itself"
        )
        self.index = index


class ClipEncoder:
    """`preprocess`, `tokenize` and `prompt_tower` may be called from any thread; the rest belongs to one thread.

    By the model's own `temperature` cosines become probabilities: softmax(cosines / temperature), or where there is a
    `bias` (SigLIP), sigmoid(cosine / temperature + bias). `fingerprint` tells checkpoints apart. Computes in float32.
    Results are on the CPU, whatever the device.
    """

    def __init__(self, path: str, *, device: str = "auto") -> None:
        """Load from a local folder or a hub id, safetensors only. ValueError for anything but a dual encoder."""
        config = AutoConfig.from_pretrained(path)
        if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
            raise ValueError(f"{path} is not a CLIP or SigLIP checkpoint: it is a {config.model_type!r} model")
        if config.model_type == "siglip2":
            raise ValueError(f"{path} takes images of any shape (SigLIP 2 NaFlex), which is not supported")
        model, loading = AutoModel.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(f"{path}: {len(missing)} weights of the model are missing, e.g. {missing[0]}")
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise ValueError(f"{path} is not a CLIP or SigLIP checkpoint: it does not embed images and texts alike")
        if broken := [name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())]:
            raise ValueError(f"{path}: weights of the model hold NaN or infinity, e.g. {broken[0]}; download it again")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        siglip = config.model_type.startswith("siglip")
        tokenizer = AutoTokenizer.from_pretrained(path)
        # PIL rather than torchvision: the same pixels as training on every machine, and no further dependency.
        self._prototypes = {
            "tokenizer": _lowercasing(tokenizer) if siglip else tokenizer,
            "image_processor": AutoImageProcessor.from_pretrained(path, backend="pil"),
        }
        self._copies = threading.local()
        self._copying = threading.Lock()
        self.text_limit = int(config.text_config.max_position_embeddings)
        # SigLIP was trained with every text padded to the full length, and reads the padding too.
        self._padding: str | bool = "max_length" if siglip else True
        self._text_inputs = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        scale, bias = (getattr(model, name, None) for name in ("logit_scale", "logit_bias"))
        self.temperature = 0.01 if scale is None else 1 / float(scale.detach().exp())
        self.bias = None if bias is None else float(bias.detach())
        self.dimensions = self.embed_texts(["a"]).shape[1]
        self.fingerprint = _fingerprint(self.model)

    def preprocess(self, image: Image) -> Tensor:
        """pixel_values (3, H, W) float32 of one RGB image."""
        return crop_pixels(image, self._own("image_processor"))

    def cost(self, width: int, height: int) -> Cost:
        """What `preprocess` takes for an image of this size. Raises InvalidRequest for one that is too narrow."""
        return crop_cost(width, height, self._prototypes["image_processor"])

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what `preprocess` leaves of an image of this size, in its pixels."""
        return crop_box(width, height, self._prototypes["image_processor"])

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
        return normalize(self.model.get_image_features(pixel_values=batch).pooler_output, dim=1).cpu()

    def tokenize(self, texts: Sequence[str | list[int]]) -> list[list[int]]:
        """Token ids of each text, special tokens included; what are ids already stays.

        Raises TextTooLong and ForeignTokens.
        """
        for index, text in enumerate(texts):
            if isinstance(text, str) and len(text) > self.most_characters:
                raise TextTooLong(index, f"{len(text)} characters", self.text_limit)
        tokenizer = self._own("tokenizer")
        frame, *made = tokenizer(["", *(text for text in texts if isinstance(text, str))], verbose=False).input_ids
        following = iter(made)
        ids: list[list[int]] = [next(following) if isinstance(text, str) else text for text in texts]
        for index, tokens in enumerate(ids):
            if len(tokens) > self.text_limit:
                raise TextTooLong(index, f"{len(tokens)} tokens", self.text_limit)
            ends = [tokens[0], tokens[-1]] if len(frame) > 1 else tokens[-1:]
            if isinstance(texts[index], list) and (ends != frame or max(tokens) >= len(tokenizer)):
                raise ForeignTokens(index, frame)
        return ids

    @torch.inference_mode()
    def embed_ids(self, ids: Sequence[list[int]]) -> Tensor:
        """Tokenized texts to (n, d) float32, L2-normalised."""
        inputs = self._own("tokenizer").pad(
            {"input_ids": list(ids)}, padding=self._padding, max_length=self._padding_length, return_tensors="pt"
        )
        names = [name for name in self._text_inputs if name in inputs]
        output = self.model.get_text_features(**{name: inputs[name].to(self.device) for name in names})
        return normalize(output.pooler_output, dim=1).cpu()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(n, d) float32, L2-normalised. Raises TextTooLong."""
        return self.embed_ids(self.tokenize(texts))

    @torch.inference_mode()
    def hidden_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """Preprocessed images to (n, d_v) float32: the vision tower's pooled output before `visual_projection`."""
        return self.model.vision_model(pixel_values=torch.stack(list(pixels)).to(self.device)).pooler_output.cpu()

    def visual_projection(self) -> Tensor:
        """(d, d_v): from hidden to shared space; the identity where the model has no such layer (SigLIP)."""
        layer = getattr(self.model, "visual_projection", None)
        return torch.eye(self.dimensions) if layer is None else layer.weight.detach().clone().cpu()

    def prompt_tower(self, prompt: str) -> PromptTower:
        """The text tower for `prompt`, whose last word, `*`, is a free embedding; it shares the weights."""
        return PromptTower(
            self.model, self._own("tokenizer"), prompt, limit=self.text_limit, padding_length=self._padding_length
        )

    @property
    def most_characters(self) -> int:
        """The most characters of a text; a longer one is refused before it is tokenised."""
        return CHARACTERS_PER_TOKEN * self.text_limit

    @property
    def _padding_length(self) -> int | None:
        return self.text_limit if self._padding == "max_length" else None

    def share_weights(self, tower: nn.Module) -> int:
        """Use the vision weights of an already loaded model where they are equal; returns the bytes freed.

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


def _lowercasing(tokenizer: Any) -> Any:
    """SigLIP was trained on lower-case texts. SigLIP 2's checkpoints come with Gemma's tokenizer, which keeps capitals;
    SigLIP's own, which has no backend of this kind, lowers them itself.
    """
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        before = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
    return tokenizer


def _tower_name(name: str) -> str:
    return name.removeprefix("vision_model.")


def _same(mine: Tensor, other: Tensor) -> bool:
    alike = mine.dtype == other.dtype and mine.device == other.device and mine.shape == other.shape
    return alike and torch.equal(mine, other)


def _fingerprint(model: nn.Module) -> str:
    """16 hex digits over a slice of every weight: embeddings of different checkpoints must not be mixed."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().flatten()[:64].cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
