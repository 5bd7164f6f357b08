"""Bodies of requests, made once."""

import functools
import json
from collections.abc import Callable

CLASSES = ("circle", "star")


def part(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def chat(*urls: str, text: str = "What color is it?", **fields: object) -> bytes:
    """A chat completion with the images first."""
    content = [*map(part, urls), {"type": "text", "text": text}]
    body = {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}
    return json.dumps(body).encode()


def classify(*urls: str, **fields: object) -> bytes:
    return json.dumps({"images": urls, "classes": CLASSES, **fields}).encode()


def embed(*urls: str) -> bytes:
    return json.dumps({"input": [part(url) for url in urls]}).encode()


IMAGE_ROUTES: dict[str, Callable[..., bytes]] = {
    "/v1/chat/completions": chat,
    "/v1/classify": classify,
    "/v1/embeddings": embed,
}


@functools.cache
def repeated(before: str, item: str, after: str, size: int) -> bytes:
    """JSON of about `size` bytes: as many items as fit, between what comes before and after."""
    return (before + (item + ",") * (size // (len(item) + 1)) + item + after).encode()
