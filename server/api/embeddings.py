"""POST /v1/embeddings: texts and images as vectors in one space, in OpenAI's shape."""

import base64
import struct
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from PIL.Image import Image
from pydantic import BaseModel, BeforeValidator, Field

from covervlm.server.api.chat_request import ImageContent, Text, TextContent, Wire
from covervlm.server.api.errors import MODEL_NOT_FOUND, RESPONSES, UNSUPPORTED_PARAMETER
from covervlm.server.api.image_inputs import load_images
from covervlm.server.engines.base import InvalidRequest
from covervlm.server.media.images import ImageLoader

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService

Input = Text | TextContent | ImageContent


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class EmbeddingRequest(Wire):
    """OpenAI's body; beside strings, `input` takes image_url and text parts, alone or in a list."""

    model: Text | None = None
    input: Annotated[list[Input], BeforeValidator(_as_list), Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: Any = None


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


def router(service: "ClipService", loader: ImageLoader) -> APIRouter:
    routes = APIRouter(tags=["embeddings"], responses=RESPONSES)

    @routes.post("/v1/embeddings")
    async def create_embeddings(body: EmbeddingRequest) -> EmbeddingList:
        """Vectors of texts and images; cosine similarity compares them across both."""
        check_model(body.model, service)
        await service.ready()
        if body.dimensions not in (None, service.dimensions):
            message = f"'dimensions' is not supported: this model's embeddings have {service.dimensions}."
            raise InvalidRequest(message, param="dimensions", code=UNSUPPORTED_PARAMETER)
        images = {i: item for i, item in enumerate(body.input) if isinstance(item, ImageContent)}
        params = [f"input[{i}]" for i in images]
        loaded = dict(zip(images, await load_images(loader, list(images.values()), params), strict=True))
        inputs: list[str | Image] = [
            loaded[i] if isinstance(item, ImageContent) else item.text if isinstance(item, TextContent) else item
            for i, item in enumerate(body.input)
        ]
        embedded = await service.embed(inputs)
        data = [
            Embedding(index=i, embedding=_encoded(vector, body.encoding_format))
            for i, vector in enumerate(embedded.vectors)
        ]
        usage = EmbeddingUsage(prompt_tokens=embedded.tokens, total_tokens=embedded.tokens)
        return EmbeddingList(data=data, model=service.name, usage=usage)

    return routes


def _encoded(vector: bytes, encoding: Literal["float", "base64"]) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector).decode()
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
