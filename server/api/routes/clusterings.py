"""POST /v1/clusterings: groups of images by the aspect that the user names."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

from fastapi import APIRouter, Request
from pydantic import AfterValidator, Field, model_validator

from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.image_inputs import MOST_IMAGES, ImageInput, load_images
from covervlm.server.api.routes.embeddings import check_model
from covervlm.server.api.routes.jobs import JobStatus, status
from covervlm.server.api.wire.chat_request import Text, items
from covervlm.server.api.wire.methods import MethodBody, OneOf
from covervlm.server.asking.asker import Asker
from covervlm.server.asking.words import reference_words
from covervlm.server.media.images import ImageLoader

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService

Word = Annotated[Text, Field(min_length=1, max_length=100)]


def _plain(text: str) -> str:
    """Text without `*`, since it becomes part of a sentence that ends in one, the place of a word."""
    if "*" in text:
        raise ValueError("holds '*', which marks the word that is learned; write a whole sentence as 'prompt'")
    return text.strip()


def _not_blank(text: str) -> str:
    if not text:
        raise ValueError("holds nothing but blanks")
    return text


class ClusteringBody(MethodBody):
    """Images and an aspect, e.g. "color" of the subject "fruit".

    Without `words`, the served model is asked for the aspect's values. `prompt` replaces the sentence in which a
    word is learned; it ends in `*`. Without `clusters`, the number is chosen by silhouette.
    """

    model: Text | None = None
    images: Annotated[list[ImageInput], items(MOST_IMAGES, 2)]
    aspect: Annotated[Word, AfterValidator(_plain), AfterValidator(_not_blank)]
    subject: Annotated[Text, Field(max_length=100), AfterValidator(_plain)] = ""
    words: Annotated[list[Word], items(1000, 2)] | None = None
    prompt: Annotated[Text, Field(pattern=r"^[^*]*\*$", max_length=300)] | None = None
    clusters: Annotated[int, Field(ge=2, le=1000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        words = [word.strip().casefold() for word in self.words or ()]
        if len(set(words)) < len(words) or "" in words:
            raise ValueError("'words' holds an empty word or one twice")
        if self.clusters is not None and self.clusters > len(self.images):
            raise ValueError(f"{self.clusters} clusters cannot be made of {len(self.images)} images")
        return self

    def options(self) -> dict[str, Any]:
        """What the clustering itself takes."""
        return {
            "aspect": self.aspect,
            "subject": self.subject,
            "words": tuple(word.strip() for word in self.words or ()),
            "prompt": self.prompt or "",
            "clusters": self.clusters,
            "seed": self.seed,
            **self.chosen(),
        }


def router(service: "ClipService", loader: ImageLoader, asker: Asker) -> APIRouter:
    routes = APIRouter(tags=["clustering"], responses=RESPONSES, route_class=BodyRoute)

    @routes.post("/v1/clusterings", status_code=202)
    async def cluster(body: Annotated[ClusteringBody, OneOf("group")], request: Request) -> JobStatus:
        """Start a job; its result holds labels, cluster names and proxies, the words used, and a plane to plot."""
        check_model(body.model, service)
        await service.ready()
        images = await load_images(
            loader, body.images, [f"images[{i}]" for i in range(len(body.images))], request.state.caller
        )
        ask = None
        if body.words is None:
            name, caller = f"{request.state.request_id}-words", request.state.caller
            ask = partial(reference_words, asker, body.aspect, body.subject, request_id=name, caller=caller)

        return status(await service.clusterings.start(request.state.caller, images, ask, **body.options()))

    return routes
