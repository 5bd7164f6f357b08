"""/v1/classify and /v1/classifiers: labels for images, and classifiers learned from labelled or unlabelled ones."""

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, Response

from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.image_inputs import load_images
from covervlm.server.api.learning import learned_from
from covervlm.server.api.openapi import FILE_BODY
from covervlm.server.api.points import POINTS_ANSWER, points_of_labels, wants_points
from covervlm.server.api.routes.embeddings import check_model
from covervlm.server.api.routes.jobs import JobStatus, status
from covervlm.server.api.routes.stored import add_stored
from covervlm.server.api.wire.classifiers import (
    CautiousClassification,
    ClassificationList,
    ClassifierCard,
    ClassifierList,
    ClassifierRequest,
    ClassifyRequest,
    has_labels,
)
from covervlm.server.api.wire.examples import UploadCard
from covervlm.server.api.wire.listing import listing
from covervlm.server.api.wire.methods import OneOf
from covervlm.server.api.wire.trained import Deleted
from covervlm.server.clip.encoder.templates import ENSEMBLE
from covervlm.server.media.images import ImageLoader
from covervlm.server.store.records import Artifact

if TYPE_CHECKING:
    from covervlm.server.clip.named import Named
    from covervlm.server.clip.service import ClipService


def _by_labels(body: Any) -> str:
    return "auto" if has_labels(body) else "inmap"


AnyClassifierRequest = Annotated[
    ClassifierRequest, OneOf("choose", "fit", "train", default=_by_labels, defaults=("auto", "inmap"))
]


def router(service: "ClipService", loader: ImageLoader) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["classifiers"], responses=RESPONSES, route_class=BodyRoute)

    @routes.post("/classify", response_model=ClassificationList, responses=POINTS_ANSWER)
    async def classify(body: ClassifyRequest, request: Request) -> Response:
        """Label images by class names alone, or with a classifier.

        With `Accept: application/vnd.apache.parquet` the answer is a file with a row for each image: `image` (its
        index), `label`, `confidence`, `margin`, `abstained`, `x` and `y` in the plane in which the embeddings vary
        most, and the embedding as `vector`.
        """
        check_model(body.model, service)
        as_points = await wants_points(request)
        await service.ready()
        images = await load_images(
            loader, body.images, [f"images[{i}]" for i in range(len(body.images))], request.state.caller
        )
        classes, kind, answers, features = await service.classifiers.classify(
            request.state.caller,
            images,
            classes=body.classes,
            templates=tuple(body.templates or ENSEMBLE),
            classifier=body.classifier,
            top=body.top,
            probabilities=body.probabilities,
        )
        if as_points:
            return await points_of_labels(answers, features, body.abstain_below)
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

    async def stored() -> "Named":
        await service.ready()
        return service.classifiers

    def card(entry: Artifact, brief: bool) -> ClassifierCard:
        return ClassifierCard.of(entry, brief=brief)

    add_stored(routes, "/classifiers", "classifier", stored, card, ClassifierCard, ClassifierList)

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
