"""What a request to learn something carries, loaded and checked: images, embeddings and labels."""

import asyncio
from typing import Any

from covervlm.server.api.image_inputs import load_images
from covervlm.server.api.wire.examples import LabelledBody, decoded
from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.images import ImageLoader


async def learned_from(
    body: LabelledBody, loader: ImageLoader, caller: Caller, dimensions: int, *, groups: list[str] | None = None
) -> dict[str, Any]:
    """The arguments that the service's `fit` methods have in common. groups: beside `labels`. Raises InvalidRequest."""
    if not body.examples and not body.images and body.embeddings is None and not body.uploads:
        raise InvalidRequest("No images: give 'examples', 'images', 'embeddings' or 'uploads'.", param="images")
    order = body.in_order()
    pictures = [(body.examples[i].image, f"examples[{i}].image") for i in order]
    given = [(image, place) for image, place in pictures if image is not None]
    given += [(image, f"images[{i}]") for i, image in enumerate(body.images)]
    labels = await asyncio.to_thread(body.columns, order, groups)
    rows = await asyncio.to_thread(body.rows, order, dimensions)
    images = await load_images(loader, [image for image, _ in given], [place for _, place in given], caller)
    embeddings = None
    if body.embeddings is not None:
        embeddings = await asyncio.to_thread(decoded, body.embeddings, "embeddings")
    return {
        "images": images,
        "rows": rows,
        "embeddings": embeddings,
        "uploads": body.uploads,
        "labels": labels,
        "label_map": body.label_map,
        "parameters": body.parameters.model_dump(exclude_unset=True) if body.parameters else {},
        "method": body.method,
        "seed": body.seed,
    }
