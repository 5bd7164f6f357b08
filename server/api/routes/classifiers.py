"""/v1/classify and /v1/classifiers: labels for images, and classifiers learned from labelled or unlabelled ones."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, Response

from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.image_inputs import load_images
from covervlm.server.api.learning import learned_from
from covervlm.server.api.openapi import FILE_ANSWER, FILE_BODY, tensors_file
from covervlm.server.api.routes.embeddings import check_model
from covervlm.server.api.routes.jobs import JobStatus, status
from covervlm.server.api.wire.classifiers import (
    CautiousClassification,
    ClassificationList,
    ClassifierCard,
    ClassifierList,
    ClassifierRequest,
    ClassifyRequest,
    has_labels,
)
from covervlm.server.api.wire.examples import Name, UploadCard
from covervlm.server.api.wire.listing import listing
from covervlm.server.api.wire.methods import OneOf
from covervlm.server.api.wire.trained import Deleted
from covervlm.server.clip.encoder.templates import ENSEMBLE
from covervlm.server.media.images import ImageLoader

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService


def _by_labels(body: Any) -> str:
    return "auto" if has_labels(body) else "inmap"


AnyClassifierRequest = Annotated[
    ClassifierRequest, OneOf("choose", "fit", "train", default=_by_labels, defaults=("auto", "inmap"))
]


def router(service: "ClipService", loader: ImageLoader) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["classifiers"], responses=RESPONSES, route_class=BodyRoute)

    @routes.post("/classify", response_model=ClassificationList)
    async def classify(body: ClassifyRequest, request: Request) -> Response:
        """Label images by class names alone, or with a classifier."""
        check_model(body.model, service)
        await service.ready()
        images = await load_images(
            loader, body.images, [f"images[{i}]" for i in range(len(body.images))], request.state.caller
        )
        classes, kind, answers = await service.classifiers.classify(
            request.state.caller,
            images,
            classes=body.classes,
            templates=tuple(body.templates or ENSEMBLE),
            classifier=body.classifier,
            top=body.top,
            probabilities=body.probabilities,
        )
        whole = ClassificationList(model=service.name, classes=classes, probabilities=kind, data=[])
        return await listing(
            lambda: (
                CautiousClassification.of(i, one.top, margin=one.margin, abstained=one.top[0][1] < body.abstain_below)
                for i, one in enumerate(answers)
            ),
            whole,
        )

    @routes.post("/classifiers", status_code=202)
    async def train_classifier(body: AnyClassifierRequest, request: Request) -> JobStatus:
        """Start a job that learns the next version of a classifier; GET /v1/jobs/{id} follows it."""
        check_model(body.model, service)
        await service.ready()
        given = await learned_from(body, loader, request.state.caller, service.dimensions, groups=body.groups)
        job = await service.classifiers.fit(
            request.state.caller,
            body.name,
            classes=body.classes,
            templates=tuple(body.templates or ENSEMBLE),
            prior=body.prior,
            keep_examples=body.keep_examples,
            **given,
        )
        return status(job)

    @routes.get("/classifiers", response_model=ClassifierList)
    async def list_classifiers(request: Request) -> Response:
        """Every version, oldest first, without their reports."""
        await service.ready()
        entries = await service.classifiers.all(request.state.caller.owner)
        return await listing(
            lambda: (ClassifierCard.of(entry, brief=True) for entry in entries), ClassifierList(data=[])
        )

    @routes.get("/classifiers/{name}", response_model=ClassifierCard)
    async def retrieve_classifier(name: str, request: Request) -> Response:
        """The newest version of a name, or `name@version`."""
        await service.ready()
        entry = await service.classifiers.get(request.state.caller.owner, name)
        # A report on thousands of classes takes longer than others should wait.
        card = await asyncio.to_thread(lambda: ClassifierCard.of(entry).model_dump_json())
        return Response(card, media_type="application/json")

    @routes.get("/classifiers/{name}/file", response_class=Response, responses=FILE_ANSWER)
    async def download_classifier(name: str, request: Request) -> Response:
        """The classifier as a safetensors file: its head's tensors, everything else in the metadata."""
        await service.ready()
        return tensors_file(await service.classifiers.file(request.state.caller.owner, name), f"{name}.safetensors")

    @routes.put("/classifiers/{name}/file", status_code=201, openapi_extra=FILE_BODY)
    async def upload_classifier(name: Name, request: Request) -> ClassifierCard:
        """Keep a classifier from a file that this API gave out, as the next version of a name."""
        await service.ready()
        return ClassifierCard.of(await service.classifiers.add(request.state.caller.owner, name, await request.body()))

    @routes.delete("/classifiers/{name}")
    async def delete_classifier(name: str, request: Request) -> Deleted:
        """Delete all versions of a name, or with `name@version` that one."""
        await service.ready()
        await service.classifiers.delete(request.state.caller.owner, name)
        return Deleted(id=name)

    @routes.post("/embeddings/uploads", status_code=201, openapi_extra=FILE_BODY)
    async def upload_embeddings(request: Request) -> UploadCard:
        """A .npy or .safetensors file of embeddings as the request's body, for later jobs."""
        await service.ready()
        upload, rows = await service.uploads.read(request.state.caller.owner, await request.body())
        return UploadCard(id=upload, images=len(rows), views=rows.ndim - 1, dimensions=service.dimensions)

    @routes.delete("/embeddings/uploads/{upload}")
    async def delete_embeddings(upload: str, request: Request) -> Deleted:
        await service.ready()
        service.uploads.remove(request.state.caller.owner, upload)
        return Deleted(id=upload)

    return routes
