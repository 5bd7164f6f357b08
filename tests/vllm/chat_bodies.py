"""Chat completions about the demo's scenes, as OpenAI's API takes them."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from demo_model.scenes import make_scene
from PIL import Image

QUESTIONS = ["what color is the circle ?", "how many squares are there ?", "is there a star ?"]
SEED = 60_000_000


def grained(image: Image.Image, seed: int) -> Image.Image:
    """With a little noise: in flat areas patches are equal, and which of equals is kept is a matter of last digits."""
    pixels = np.asarray(image).astype(int)
    noise = np.random.default_rng(seed).integers(-6, 7, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def body(numbers: Sequence[int], question: str = QUESTIONS[0], **fields: Any) -> dict[str, Any]:
    """A greedy request about numbered scenes; fields take precedence."""
    content: list[dict[str, Any]] = []
    for number in numbers:
        buffer = io.BytesIO()
        grained(make_scene(SEED + number).image, number).save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": question})
    messages = [{"role": "user", "content": content}]
    return {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 8, **fields}
