"""/v1/streams: online classifiers that learn from the stream they label."""

import asyncio
import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, Field, model_validator
from pydantic_core import to_json

from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.image_inputs import ImageInput, load_images
from covervlm.server.api.openapi import FILE_ANSWER, FILE_BODY, tensors_file
from covervlm.server.api.routes.embeddings import check_model
from covervlm.server.api.wire.chat_request import Text, Wire, items
from covervlm.server.api.wire.classifiers import Classes, Classification, Templates, check_answer_size
from covervlm.server.api.wire.listing import listing
from covervlm.server.api.wire.methods import MethodBody, OneOf
from covervlm.server.api.wire.trained import Deleted
from covervlm.server.clip.encoder.templates import ENSEMBLE
from covervlm.server.media.images import ImageLoader

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService


class StreamRequest(MethodBody):
    """`horizon` is the expected number of images: trust in what is learned grows until then and stays from there."""

    model: Text | None = None
    classes: Classes
    templates: Templates | None = None
    horizon: Annotated[int, Field(ge=1, le=10**12)]


class StreamState(BaseModel):
    """`observed` images were learned from; after a crash the stream has those of `snapshot_observed`."""

    id: str
    object: Literal["stream"] = "stream"
    created: int
    model: str
    classes: list[str]
    templates: list[str]
    horizon: int
    method: str
    parameters: dict[str, float]
    observed: int
    snapshot_observed: int
    past_horizon: bool


class StreamGroup(BaseModel):
    """A class as the stream has it now.

    drift: from its text, from 0 to 2: one less their cosine. size: images of the group, at most as many as the horizon;
    null where the method counts none.
    """

    label: str
    size: int | None
    drift: float


class StreamDetails(StreamState):
    groups: list[StreamGroup]


class StreamList(BaseModel):
    object: Literal["list"] = "list"
    data: list[StreamState]


class ObserveRequest(Wire):
    images: Annotated[list[ImageInput], items(2048)]
    top: Annotated[int, Field(ge=1, le=10_000)] = 5

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        check_answer_size(len(self.images), self.top)
        return self

    def digest(self) -> str:
        """A hash that tells this body from another; called in a thread. It is that of `model_dump_json`, computed in
        pieces, since dumping some 60 MB at once would keep every other thread from running."""
        digest = hashlib.sha256()
        for number, image in enumerate(self.images):
            digest.update(b"," if number else b'{"images":[')
            digest.update(to_json(image))
        digest.update(b'],"top":%d}' % self.top)
        return digest.hexdigest()


class Observation(BaseModel):
    """Labels in the order of the images; an `index` counts the images of the stream from 0."""

    object: Literal["stream.observation"] = "stream.observation"
    stream: str
    observed: int
    data: list[Classification]


IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


def router(service: "ClipService", loader: ImageLoader) -> APIRouter:
    routes = APIRouter(prefix="/v1/streams", tags=["streams"], responses=RESPONSES, route_class=BodyRoute)

    @routes.post("", status_code=201)
    async def open_stream(body: Annotated[StreamRequest, OneOf("stream")], request: Request) -> StreamState:
        """Begin a stream; it belongs to the caller and learns from nobody else's images."""
        check_model(body.model, service)
        await service.ready()
        stream = await service.streams.open(
            request.state.caller.owner,
            classes=body.classes,
            templates=tuple(body.templates or ENSEMBLE),
            horizon=body.horizon,
            **body.chosen(),
        )
        return _state(stream)

    @routes.get("", response_model=StreamList)
    async def list_streams(request: Request) -> Response:
        await service.ready()
        streams = await service.sessions.all(request.state.caller.owner)
        return await listing(lambda: map(_state, streams), StreamList(data=[]))

    @routes.get("/{stream}", response_model=StreamDetails)
    async def retrieve_stream(stream: str, request: Request) -> Response:
        """How far the stream is, how large its groups are, and how far they have moved."""
        await service.ready()
        found = await service.sessions.look(request.state.caller.owner, stream)
        content = await asyncio.to_thread(
            lambda: StreamDetails(**{**found, "created": int(found["created"])}).model_dump_json()
        )
        return Response(content, media_type="application/json")

    @routes.post("/{stream}/observe", response_model=Observation)
    async def observe(
        stream: str, body: ObserveRequest, request: Request, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Label images one after another, learning from each; the images are not kept.

        With an Idempotency-Key, a repeated call gets the first answer and teaches nothing twice.
        """
        await service.ready()
        await service.sessions.describe(request.state.caller.owner, stream)
        digest = "" if idempotency_key is None else await asyncio.to_thread(body.digest)
        images = await load_images(
            loader, body.images, [f"images[{i}]" for i in range(len(body.images))], request.state.caller
        )
        answer = await service.streams.observe(
            request.state.caller, stream, images, top=body.top, key=idempotency_key, digest=digest
        )
        whole = Observation(stream=stream, observed=answer["observed"], data=[])
        return await listing(lambda: (Classification.of(one["index"], one["top"]) for one in answer["data"]), whole)

    @routes.get("/{stream}/snapshot", response_class=Response, responses=FILE_ANSWER)
    async def download_snapshot(stream: str, request: Request) -> Response:
        """The stream's state as a safetensors file, also saved on the server."""
        await service.ready()
        return tensors_file(
            await service.sessions.snapshot(request.state.caller.owner, stream), f"{stream}.safetensors"
        )

    @routes.put("/{stream}/snapshot", openapi_extra=FILE_BODY)
    async def restore_snapshot(stream: str, request: Request) -> StreamState:
        """Put the stream into the state of a snapshot over the same classes, of this or another stream."""
        await service.ready()
        return _state(await service.sessions.restore(request.state.caller.owner, stream, await request.body()))

    @routes.delete("/{stream}")
    async def delete_stream(stream: str, request: Request) -> Deleted:
        await service.ready()
        await service.sessions.delete(request.state.caller.owner, stream)
        return Deleted(id=stream)

    return routes


def _state(stream: dict[str, Any]) -> StreamState:
    return StreamState(**{**stream, "created": int(stream["created"])})
