"""/v1/zero_shot: labels for images, and classifiers learned from unlabelled images (InMaP)."""

import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, model_validator

from covervlm.server.api.chat_request import Text, Wire
from covervlm.server.api.embeddings import check_model
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.image_inputs import ImageInput, load_images
from covervlm.server.api.jobs import JobStatus, status
from covervlm.server.api.openapi import FILE_ANSWER, FILE_BODY
from covervlm.server.api.owner import owner
from covervlm.server.clip.templates import ENSEMBLE
from covervlm.server.engines.base import InvalidRequest
from covervlm.server.media.images import ImageLoader
from covervlm.server.store.records import Classifier

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Classes = Annotated[list[Text], Field(max_length=10_000)]
Templates = Annotated[list[Text], Field(min_length=1, max_length=100)]
MOST_LABELS = 100_000


class ClassifyRequest(Wire):
    """Images, and either class names (with templates, if not the built-in seven) or a classifier's name."""

    model: Text | None = None
    images: Annotated[list[ImageInput], Field(min_length=1, max_length=2048)]
    classes: Classes | None = None
    templates: Templates | None = None
    classifier: Text | None = None
    top: Annotated[int, Field(ge=1, le=10_000)] = 5

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.classes is None) == (self.classifier is None):
            raise ValueError("give either 'classes' or 'classifier'")
        if self.classifier is not None and self.templates is not None:
            raise ValueError("'templates' goes with 'classes', not with 'classifier'")
        check_answer_size(len(self.images), self.top)
        return self


def check_answer_size(images: int, top: int) -> None:
    """ValueError for more labels than an answer should carry."""
    if images * top > MOST_LABELS:
        raise ValueError(f"'top' times the number of images may be {MOST_LABELS} at most; lower 'top'")


class ClassProbability(BaseModel):
    label: str
    probability: float


class Classification(BaseModel):
    """One image's label; `top` holds the likeliest classes, best first."""

    index: int
    label: str
    probability: float
    top: list[ClassProbability]


class ClassificationList(BaseModel):
    object: Literal["list"] = "list"
    model: str
    classes: int
    data: list[Classification]


class FitParameters(Wire):
    """InMaP's, with the paper's values; `tolerance` 0 runs all iterations."""

    sinkhorn: bool = True
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.0
    tau_text: Annotated[float, Field(gt=0, le=10)] = 0.01
    tau_vision: Annotated[float, Field(gt=0, le=10)] = 0.04
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.6
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 10.0
    iterations: Annotated[int, Field(ge=1, le=100_000)] = 2000
    tolerance: Annotated[float, Field(ge=0, le=1)] = 1e-4


class ClassifierRequest(Wire):
    """Classes, and unlabelled images or their embeddings from this model.

    `embeddings` is a .npy or .safetensors file in base64; `uploads` are ids from POST /v1/zero_shot/embeddings.
    """

    model: Text | None = None
    name: Name
    classes: Classes
    templates: Templates | None = None
    images: Annotated[list[ImageInput], Field(max_length=100_000)] = Field(default_factory=list)
    embeddings: Text | None = None
    uploads: list[Text] = Field(default_factory=list)
    parameters: FitParameters = FitParameters()


class ClassifierCard(BaseModel):
    """A classifier without its proxies; `about` says how it was made."""

    id: str
    object: Literal["zero_shot.classifier"] = "zero_shot.classifier"
    name: str
    created: int
    bytes: int
    about: dict[str, Any]


class ClassifierList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ClassifierCard]


class UploadCard(BaseModel):
    """Embeddings in the server's memory; they are forgotten within an hour and never written to disk."""

    id: str
    object: Literal["zero_shot.embeddings"] = "zero_shot.embeddings"
    images: int
    dimensions: int


class Deleted(BaseModel):
    id: str
    deleted: Literal[True] = True


def router(service: "ClipService", loader: ImageLoader) -> APIRouter:
    routes = APIRouter(prefix="/v1/zero_shot", tags=["zero-shot"], responses=RESPONSES)

    @routes.post("/classify")
    async def classify(body: ClassifyRequest, request: Request) -> ClassificationList:
        """Label images by class names alone, or with a classifier."""
        check_model(body.model, service)
        await service.ready()
        images = await load_images(loader, body.images, [f"images[{i}]" for i in range(len(body.images))])
        names, rows = await service.classify(
            owner(request),
            images,
            classes=body.classes,
            templates=tuple(body.templates or ENSEMBLE),
            classifier=body.classifier,
            top=body.top,
        )
        data = [classification(i, row) for i, row in enumerate(rows)]
        return ClassificationList(model=service.name, classes=len(names), data=data)

    @routes.post("/classifiers", status_code=202)
    async def fit_classifier(body: ClassifierRequest, request: Request) -> JobStatus:
        """Start a job that learns a classifier from unlabelled images; GET /v1/jobs/{id} follows it."""
        check_model(body.model, service)
        await service.ready()
        if not body.images and body.embeddings is None and not body.uploads:
            raise InvalidRequest("No images: give 'images', 'embeddings' or 'uploads'.", param="images")
        images = await load_images(loader, body.images, [f"images[{i}]" for i in range(len(body.images))])
        job = await service.classifiers.fit(
            owner(request),
            body.name,
            classes=body.classes,
            templates=tuple(body.templates or ENSEMBLE),
            images=images,
            embeddings=None if body.embeddings is None else _base64(body.embeddings),
            uploads=body.uploads,
            parameters=body.parameters.model_dump(),
        )
        return status(job)

    @routes.get("/classifiers")
    async def list_classifiers(request: Request) -> ClassifierList:
        await service.ready()
        return ClassifierList(data=[_card(entry) for entry in service.classifiers.list(owner(request))])

    @routes.get("/classifiers/{name}")
    async def retrieve_classifier(name: str, request: Request) -> ClassifierCard:
        await service.ready()
        return _card(service.classifiers.get(owner(request), name))

    @routes.get("/classifiers/{name}/file", response_class=Response, responses=FILE_ANSWER)
    async def download_classifier(name: str, request: Request) -> Response:
        """The classifier as a safetensors file: `proxies` (d, K), everything else in the metadata."""
        await service.ready()
        return tensors_file(await service.classifiers.file(owner(request), name), f"{name}.safetensors")

    @routes.put("/classifiers/{name}/file", status_code=201, openapi_extra=FILE_BODY)
    async def upload_classifier(name: Name, request: Request) -> ClassifierCard:
        """Keep a classifier from a file that this API gave out, under a name of its own."""
        await service.ready()
        return _card(await service.classifiers.add(owner(request), name, await request.body()))

    @routes.delete("/classifiers/{name}")
    async def delete_classifier(name: str, request: Request) -> Deleted:
        await service.ready()
        await service.classifiers.delete(owner(request), name)
        return Deleted(id=name)

    @routes.post("/embeddings", status_code=201, openapi_extra=FILE_BODY)
    async def upload_embeddings(request: Request) -> UploadCard:
        """A .npy or .safetensors file of embeddings as the request's body, for later jobs."""
        await service.ready()
        upload, images = await service.upload(owner(request), await request.body())
        return UploadCard(id=upload, images=images, dimensions=service.dimensions)

    @routes.delete("/embeddings/{upload}")
    async def delete_embeddings(upload: str, request: Request) -> Deleted:
        await service.ready()
        service.uploads.remove(owner(request), upload)
        return Deleted(id=upload)

    return routes


def classification(index: int, best: list[tuple[str, float]]) -> Classification:
    top = [ClassProbability(label=label, probability=probability) for label, probability in best]
    return Classification(index=index, label=top[0].label, probability=top[0].probability, top=top)


def tensors_file(data: bytes, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type="application/octet-stream", headers=headers)


def _card(entry: Classifier) -> ClassifierCard:
    return ClassifierCard(
        id=entry.id, name=entry.name, created=int(entry.created), bytes=entry.size, about=dict(entry.about)
    )


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("'embeddings' is not valid base64.", param="embeddings", code="invalid_value") from None
