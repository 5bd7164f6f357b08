"""What the load benchmark asks: the demo's scenes and questions, every request with its one right answer."""

import base64
import hashlib
import io
from dataclasses import dataclass

import numpy as np
from demo_model.questions import ask
from demo_model.scenes import make_scene
from demo_model.splits import FIRST_SEED
from evaluation.question_sets import question_set, scene_of
from PIL.Image import Image

IMAGES = ("new", "same")


@dataclass(frozen=True)
class Asked:
    """One request: the image as a data URL, the question, and its right answer."""

    image: str
    question: str
    answer: str

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the request that an answer belongs to."""
        return hashlib.sha256(self.image.encode()).hexdigest(), self.question


def workload(images: str, count: int, number: int) -> list[Asked]:
    """The `count` requests of measurement `number`: the same scenes and questions in each, in images never sent before.

    images: "new" sends another image with every request, "same" asks different questions about one image. One pixel
    marks the measurement (and the request), so that no server has the image in a cache, and its work is the same.
    """
    if images == "same":
        scene = make_scene(FIRST_SEED["tuning"])
        questions = list({q.text: q for draw in range(40) for q in ask(scene, np.random.default_rng(draw))}.values())
        image = data_url(marked(scene.image, number, 0))
        return [Asked(image, q.text, q.answer) for q in (questions[i % len(questions)] for i in range(count))]
    items = question_set("standard", count, split="tuning")
    return [
        Asked(data_url(marked(scene_of(item.set, item.seed).image, number, place)), item.question, item.answer)
        for place, item in enumerate(items)
    ]


def marked(image: Image, number: int, place: int) -> Image:
    """A copy whose first pixel spells two numbers below 4,096."""
    copy = image.copy()
    mark = number << 12 | place
    copy.putpixel((0, 0), (mark >> 16 & 255, mark >> 8 & 255, mark & 255))
    return copy


def data_url(image: Image) -> str:
    """The image as a PNG, which keeps every pixel."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
