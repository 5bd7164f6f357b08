"""/v1/zero_shot/sessions: online classifiers that learn from the stream they label (OnZeta)."""

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, Field, model_validator

from covervlm.server.api.chat_request import Text, Wire
from covervlm.server.api.embeddings import check_model
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.image_inputs import ImageInput, load_images
from covervlm.server.api.openapi import FILE_ANSWER, FILE_BODY
from covervlm.server.api.owner import owner
from covervlm.server.api.zero_shot import (
    Classes,
    Classification,
    Deleted,
    Templates,
    check_answer_size,
    classification,
    tensors_file,
)
from covervlm.server.clip.templates import ENSEMBLE
from covervlm.server.media.images import ImageLoader

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService


class StreamParameters(Wire):
    """OnZeta's, with the paper's values."""

    tau_text: Annotated[float, Field(gt=0, le=10)] = 0.01
    tau_vision: Annotated[float, Field(gt=0, le=10)] = 0.04
    beta: Annotated[float, Field(ge=0, le=1)] = 0.8
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 0.5
    learning_rate_rho: Annotated[float, Field(ge=0, le=10_000)] = 20.0


class SessionRequest(Wire):
    """`horizon` is the expected number of images: trust in what is learned grows until then and stays from there."""

    model: Text | None = None
    classes: Classes
    templates: Templates | None = None
    horizon: Annotated[int, Field(ge=1, le=10**12)]
    parameters: StreamParameters = StreamParameters()


class SessionState(BaseModel):
    """`observed` images were learned from; after a crash the session has those of `snapshot_observed`."""

    id: str
    object: Literal["zero_shot.session"] = "zero_shot.session"
    created: int
    model: str
    classes: list[str]
    templates: list[str]
    horizon: int
    parameters: dict[str, float]
    observed: int
    snapshot_observed: int
    past_horizon: bool


class SessionList(BaseModel):
    object: Literal["list"] = "list"
    data: list[SessionState]


class ObserveRequest(Wire):
    images: Annotated[list[ImageInput], Field(min_length=1, max_length=2048)]
    top: Annotated[int, Field(ge=1, le=10_000)] = 5

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        check_answer_size(len(self.images), self.top)
        return self


class Observation(BaseModel):
    """Labels in the order of the images; an `index` counts the images of the session from 0."""

    object: Literal["zero_shot.observation"] = "zero_shot.observation"
    session: str
    observed: int
    data: list[Classification]


IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


def router(service: "ClipService", loader: ImageLoader) -> APIRouter:
    routes = APIRouter(prefix="/v1/zero_shot/sessions", tags=["zero-shot"], responses=RESPONSES)

    @routes.post("", status_code=201)
    async def open_session(body: SessionRequest, request: Request) -> SessionState:
        """Begin a stream; it belongs to the caller and learns from nobody else's images."""
        check_model(body.model, service)
        await service.ready()
        session = await service.open_session(
            owner(request),
            classes=body.classes,
            templates=tuple(body.templates or ENSEMBLE),
            horizon=body.horizon,
            parameters=body.parameters.model_dump(),
        )
        return _state(session)

    @routes.get("")
    async def list_sessions(request: Request) -> SessionList:
        await service.ready()
        return SessionList(data=[_state(session) for session in service.sessions.list(owner(request))])

    @routes.get("/{session}")
    async def retrieve_session(session: str, request: Request) -> SessionState:
        await service.ready()
        return _state(await service.sessions.describe(owner(request), session))

    @routes.post("/{session}/observe")
    async def observe(
        session: str, body: ObserveRequest, request: Request, idempotency_key: IdempotencyKey = None
    ) -> Observation:
        """Label images one after another, learning from each; the images are not kept.

        With an Idempotency-Key, a repeated call gets the first answer and teaches nothing twice.
        """
        await service.ready()
        await service.sessions.describe(owner(request), session)
        digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
        images = await load_images(loader, body.images, [f"images[{i}]" for i in range(len(body.images))])
        answer = await service.observe(
            owner(request), session, images, top=body.top, key=idempotency_key, digest=digest
        )
        data = [classification(entry["index"], [(label, p) for label, p in entry["top"]]) for entry in answer["data"]]
        return Observation(session=session, observed=answer["observed"], data=data)

    @routes.get("/{session}/snapshot", response_class=Response, responses=FILE_ANSWER)
    async def download_snapshot(session: str, request: Request) -> Response:
        """The session's state as a safetensors file, also saved on the server."""
        await service.ready()
        return tensors_file(await service.sessions.snapshot(owner(request), session), f"{session}.safetensors")

    @routes.put("/{session}/snapshot", openapi_extra=FILE_BODY)
    async def restore_snapshot(session: str, request: Request) -> SessionState:
        """Put the session into the state of a snapshot over the same classes, of this or another session."""
        await service.ready()
        return _state(await service.sessions.restore(owner(request), session, await request.body()))

    @routes.delete("/{session}")
    async def delete_session(session: str, request: Request) -> Deleted:
        await service.ready()
        await service.sessions.delete(owner(request), session)
        return Deleted(id=session)

    return routes


def _state(session: dict[str, Any]) -> SessionState:
    return SessionState(**{**session, "created": int(session["created"])})
