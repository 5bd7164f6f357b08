"""Labels for images, by class names or by a stored classifier."""

from collections.abc import Sequence

from covervlm.clients.calls import Call, given
from covervlm.clients.clip_answers import Classification
from covervlm.clients.images import Images, image_part, sources


def classify(
    images: Images,
    classes: Sequence[str] | None = None,
    *,
    classifier: str | None = None,
    templates: Sequence[str] | None = None,
    top: int = 5,
    model: str | None = None,
    timeout: float | None = None,
) -> Call[list[Classification]]:
    """A label for every image: the likeliest of `classes`, or of the classes of a stored `classifier`.

    templates: sentences with {} in the class name's place, e.g. "a photo of a {}."; by default CLIP's seven.
    top: how many of the likeliest classes each answer tells.
    """
    body = {
        "images": [image_part(image) for image in sources(images)],
        "top": top,
        **given(classes=_listed(classes), classifier=classifier, templates=_listed(templates), model=model),
    }
    return Call("POST", "/v1/zero_shot/classify", Classification.read_list, body, timeout=timeout)


def _listed(texts: Sequence[str] | None) -> list[str] | None:
    return None if texts is None else list(texts)
