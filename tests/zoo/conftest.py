"""The zoo's checkpoints on disk, and each as transformers alone runs it."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.zoo.by_hand import BY_HAND, inputs_by_hand
from tests.zoo.checkpoints import ZOO


@dataclass(frozen=True)
class Specimen:
    """One checkpoint of the zoo, and transformers' own view of it."""

    name: str
    path: Path

    @cached_property
    def model(self) -> Any:
        return AutoModelForImageTextToText.from_pretrained(self.path, dtype=torch.float32).eval()

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.path)

    @cached_property
    def processor(self) -> Any:
        processor = AutoProcessor.from_pretrained(self.path)
        processor.image_processor = self.image_processor
        return processor

    @cached_property
    def image_processor(self) -> Any:
        """Pillow's pixels, also where torchvision is installed."""
        return AutoImageProcessor.from_pretrained(self.path, backend="pil")

    @property
    def eos_ids(self) -> set[int]:
        ids = self.model.generation_config.eos_token_id
        return {ids} if isinstance(ids, int) else set(ids)

    def inputs(self, question: str, images: Sequence[Image.Image] = ()) -> dict[str, Any]:
        """What transformers' own processor feeds the model: the images first, then the question."""
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        if self.model.config.model_type in BY_HAND:
            text = self.tokenizer.apply_chat_template(
                chat, chat_template=ZOO[self.name].template, add_generation_prompt=True, tokenize=False
            )
            return inputs_by_hand(self.model, self.tokenizer, self.image_processor, text, images)
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        return dict(
            self.processor(images=list(images) or None, text=text, return_tensors="pt", add_special_tokens=True)
        )

    def generate(self, question: str, images: Sequence[Image.Image] = (), *, tokens: int = 12) -> list[int]:
        """transformers' greedy answer, by the model alone: no penalty of its generation config."""
        return self.continued(self.inputs(question, images), tokens)

    @torch.inference_mode()
    def continued(self, inputs: Mapping[str, Any], tokens: int = 12) -> list[int]:
        """What follows some inputs by that same rule."""
        config = copy.deepcopy(self.model.generation_config)
        config.update(do_sample=False, temperature=1.0, repetition_penalty=1.0, max_new_tokens=tokens)
        out = self.model.generate(**inputs, generation_config=config)
        return out[0, inputs["input_ids"].shape[1] :].tolist()

    def text(self, ids: Sequence[int]) -> str:
        """What the tokenizer makes of an answer after a prompt that ends in a letter."""
        before = self.tokenizer("ANT", add_special_tokens=False).input_ids
        start, whole = (
            self.tokenizer.backend_tokenizer.decode(part, skip_special_tokens=True)
            for part in (before, [*before, *ids])
        )
        return whole[len(start) :]


@pytest.fixture(scope="session")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Specimen]:
    """A checkpoint of the zoo by name, made once a session."""
    made: dict[str, Specimen] = {}

    def get(name: str) -> Specimen:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            ZOO[name].save(folder)
            made[name] = Specimen(name, folder)
        return made[name]

    return get


@pytest.fixture(scope="session", params=ZOO)
def specimen(request: pytest.FixtureRequest, specimens: Callable[[str], Specimen]) -> Specimen:
    return specimens(request.param)


@pytest.fixture(scope="module")
def client(specimen: Specimen) -> Iterator[TestClient]:
    """A server of the specimen, by the name `zoo`, that reads all of every prompt: equal ones are equal bit by bit."""
    settings = Settings(
        model=str(specimen.path), served_model_name="zoo", threads=1, clip_model="none", prefix_cache_bytes=0
    )
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="session")
def blocks() -> Callable[..., Image.Image]:
    """A reproducible picture of random blocks with a little noise: blocks(width, height, seed).

    Without noise patches are equal in places, and which of equals is kept is a matter of last digits.
    """

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        rng = np.random.default_rng(seed)
        colors = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(colors.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
        return Image.fromarray((smooth + rng.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8))

    return make
