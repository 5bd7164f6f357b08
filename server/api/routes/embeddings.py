"""POST /v1/embeddings: texts and images as vectors in one space, in OpenAI's shape."""

import base64
import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, Tag

from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import MODEL_NOT_FOUND, RESPONSES, UNSUPPORTED_PARAMETER
from covervlm.server.api.image_inputs import ImageInput, load_images
from covervlm.server.api.wire.chat_request import ImageContent, Text, TextContent, items
from covervlm.server.api.wire.listing import listing
from covervlm.server.core.errors import InvalidRequest, NotFound
from covervlm.server.core.wire import Wire, one_of
from covervlm.server.media.images import ImageLoader

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40}[;,]", re.IGNORECASE)


class BareImage(Wire):
    image: Text


class BareText(Wire):
    text: Text


def _tag(value: Any) -> str | None:
    if isinstance(value, dict):
        kind = value.get("type", "image" if "image" in value else "bare")
        return f"<{kind}>" if isinstance(kind, str) else None
    return "<string>" if isinstance(value, str) else "<tokens>" if isinstance(value, list) else None


def _list_tag(value: Any) -> str:
    return "<list>" if isinstance(value, list) and not (value and type(value[0]) is int) else "<one>"


Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], items(10_000)]
_EXPECTED = "a string, a list of this model's token ids, or an object of a text or an image"
Input = Annotated[
    Annotated[Text, Tag("<string>")]
    | Annotated[Tokens, Tag("<tokens>")]
    | Annotated[TextContent, Tag("<text>")]
    | Annotated[ImageContent, Tag("<image_url>")]
    | Annotated[BareImage, Tag("<image>")]
    | Annotated[BareText, Tag("<bare>")],
    one_of(_tag, _EXPECTED),
]
Inputs = Annotated[
    Annotated[Input, Tag("<one>")] | Annotated[list[Input], items(2048), Tag("<list>")],
    one_of(_list_tag, f"{_EXPECTED}, or a list of such"),
]


class EmbeddingRequest(Wire):
    """OpenAI's body; beside strings and token ids, `input` takes image_url and text parts, {"image": URL} and
    {"text": ...}, alone or in a list.

    A string that is an image's data URL stands for the image. `modality` is Infinity's: with `image` every string is
    an image's URL, with `text` none is.
    """

    model: Text | None = None
    input: Inputs
    modality: Literal["text", "image"] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: Any = None

    def inputs(self) -> Iterator[tuple[str, str | list[int] | None, ImageInput | None]]:
        """Of every input its place in the body, and its text or token ids, or its image."""
        listed = _list_tag(self.input) == "<list>"
        given: Any = self.input
        for place, item in [(f"input[{i}]", one) for i, one in enumerate(given)] if listed else [("input", given)]:
            match item:
                case ImageContent():
                    yield place, None, item
                case BareImage():
                    yield f"{place}.image", None, item.image
                case TextContent() | BareText():
                    yield place, item.text, None
                case str() if self.modality == "image" or (self.modality is None and _DATA_URL.match(item)):
                    yield place, None, item
                case _:
                    yield place, item, None


class Embedding(BaseModel):
    """`embedding` is of unit length; in base64 it is little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of the texts; images count none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def check_model(name: str | None, service: "ClipService") -> None:
    """Raises InvalidRequest for a model that does not embed here; no name means the one there is."""
    if name is not None and name != service.name:
        message = (
            f"The model '{name[:200]}' does not exist or does not embed; this server embeds with '{service.name}'."
        )
        raise InvalidRequest(message, param="model", code=MODEL_NOT_FOUND)


def projection_of(model: str | None, service: "ClipService") -> str | None:
    """The projection's name in `MODEL/NAME`, None for other names."""
    prefix = f"{service.name}/"
    return model.removeprefix(prefix) if model is not None and model.startswith(prefix) else None


def router(service: "ClipService", loader: ImageLoader) -> APIRouter:
    routes = APIRouter(tags=["embeddings"], responses=RESPONSES, route_class=BodyRoute)

    @routes.post("/v1/embeddings", response_model=EmbeddingList)
    async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Vectors of texts and images; cosine similarity compares them across both."""
        name = projection_of(body.model, service)
        if name is None:
            check_model(body.model, service)
        await service.ready()
        model, dimensions, project = service.name, service.dimensions, None
        if name is not None:
            try:
                stored, projection = await service.projections.load(request.state.caller.owner, name)
            except NotFound:
                check_model(body.model, service)
                raise
            model, dimensions, project = f"{service.name}/{stored.reference}", len(projection.matrix), projection.embed
        if body.dimensions not in (None, dimensions):
            message = (
                f"'dimensions' is not supported: this model's embeddings have {dimensions}, and were not trained to be "
                "cut off."
            )
            raise InvalidRequest(message, param="dimensions", code=UNSUPPORTED_PARAMETER)
        inputs = list(body.inputs())
        images = {place: image for place, _, image in inputs if image is not None}
        pictures = await load_images(loader, list(images.values()), list(images), request.state.caller)
        loaded = dict(zip(images, pictures, strict=True))
        mixed = {place: loaded[place] if text is None else text for place, text, _ in inputs}
        embedded = await service.batched.embed(request.state.caller, mixed, project=project)
        usage = EmbeddingUsage(prompt_tokens=embedded.tokens, total_tokens=embedded.tokens)
        return await listing(
            lambda: (
                Embedding(index=i, embedding=_encoded(vector, body.encoding_format))
                for i, vector in enumerate(embedded.vectors)
            ),
            EmbeddingList(data=[], model=model, usage=usage),
        )

    return routes


def _encoded(vector: bytes, encoding: Literal["float", "base64"]) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector).decode()
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
