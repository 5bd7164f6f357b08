"""POST /v1/clusterings: groups of images by the aspect that the user names."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import APIRouter, Request
from pydantic import Field, model_validator

from covervlm.server.api.chat_request import Text, Wire
from covervlm.server.api.embeddings import check_model
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.image_inputs import ImageInput, load_images
from covervlm.server.api.jobs import JobStatus, status
from covervlm.server.api.owner import owner
from covervlm.server.clip.words import WordSource
from covervlm.server.media.images import ImageLoader

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService

Word = Annotated[Text, Field(min_length=1, max_length=100)]


class MultiMapParameters(Wire):
    """Multi-MaP's, with the paper's values."""

    concept_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.2
    reference_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.2
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.005
    epochs: Annotated[int, Field(ge=1, le=1000)] = 20


class ClusteringBody(Wire):
    """Images and an aspect, e.g. "color" of the subject "fruit".

    Without `words`, the served model is asked for the aspect's values. `prompt` replaces the sentence in which a
    word is learned; it ends in `*`. Without `clusters`, the number is chosen by silhouette.
    """

    model: Text | None = None
    images: Annotated[list[ImageInput], Field(min_length=2, max_length=100_000)]
    aspect: Word
    subject: Annotated[Text, Field(max_length=100)] = ""
    words: Annotated[list[Word], Field(min_length=2, max_length=1000)] | None = None
    prompt: Annotated[Text, Field(pattern=r"^[^*]*\S[^*]*\*$", max_length=300)] | None = None
    clusters: Annotated[int, Field(ge=2, le=1000)] | None = None
    method: Literal["multi_map", "multi_sub", "clip_kmeans"] = "multi_map"
    parameters: MultiMapParameters | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        words = [word.strip().casefold() for word in self.words or ()]
        if len(set(words)) < len(words) or "" in words:
            raise ValueError("'words' holds an empty word or one twice")
        if self.clusters is not None and self.clusters > len(self.images):
            raise ValueError(f"{self.clusters} clusters cannot be made of {len(self.images)} images")
        if self.parameters is not None and self.method != "multi_map":
            raise ValueError("'parameters' goes with the method multi_map")
        return self

    def options(self) -> dict[str, Any]:
        """What the clustering itself takes."""
        return {
            "aspect": self.aspect,
            "subject": self.subject,
            "words": tuple(word.strip() for word in self.words or ()),
            "prompt": self.prompt or "",
            "clusters": self.clusters,
            "method": self.method,
            "seed": self.seed,
            "parameters": self.parameters.model_dump() if self.parameters is not None else {},
        }


def router(service: "ClipService", loader: ImageLoader, words: WordSource) -> APIRouter:
    routes = APIRouter(tags=["clustering"], responses=RESPONSES)

    @routes.post("/v1/clusterings", status_code=202)
    async def cluster(body: ClusteringBody, request: Request) -> JobStatus:
        """Start a job; its result holds labels, cluster names and proxies, the words used, and a plane to plot."""
        check_model(body.model, service)
        await service.ready()
        images = await load_images(loader, body.images, [f"images[{i}]" for i in range(len(body.images))])
        ask = None
        if body.words is None:
            request_id = f"{request.state.request_id}-words"

            async def ask() -> list[str]:
                return await words(body.aspect, body.subject, request_id)

        return status(await service.clusterings.start(owner(request), images, ask, **body.options()))

    return routes
