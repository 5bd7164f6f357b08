"""What is measured beside the server's own methods: one with another parameter, and one that is no product."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from covervlm.pruners import Objective, PruneInput, Pruner, get_pruner, pruner_names
from covervlm.pruners.coverage import MMTok
from covervlm.pruners.registry import pruner_class
from covervlm.pruners.similarity import centred

PARAMETERS: dict[str, tuple[str, dict[str, str]]] = {"cdpruner_clip": ("cdpruner", {"relevance": "clip"})}
"""By the benchmark's name, the method and its parameters, as a request gives them."""


@dataclass(frozen=True)
class CentredMMTok(MMTok):
    """MMTok whose vision rows compare centred features, as Cen-Prune (arXiv 2608.30263) does for diversity."""

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        seen = [replace(image, features=centred(image.features)[0].float()) for image in inputs]
        own = Objective(seen, tau_text=self.tau_text, tau_vision=self.tau_vision, alpha=self.alpha)
        return own.maximise(counts)


NOTES = (
    '`cdpruner` takes relevance from the language model\'s word embeddings (`relevance: "words"`); '
    '`cdpruner_clip` is the same method with `relevance: "clip"`, as its release has it: the negative cosine '
    "of CLIP's patches to the question, here by the demo CLIP, whose tower the model has and whose text tower "
    "was trained on captions of a few words, not on questions. `mmtok_cen` is no method of the server: MMTok "
    "whose vision rows compare centred features, as Cen-Prune does. `resize` is missing because the model's "
    "tower takes pictures of one size: the only smaller one would be cut out or padded, which is not what "
    "resizing does. There is no set of pictures with text in them, the field's known weak spot: the model has "
    "never seen a letter and cannot read, and to teach it would take a training run of its own (75 minutes of "
    "one core for the present one). How the methods do on text was not measured."
)
"""What a reader of the tables has to know of their rows."""

UNSERVED: dict[str, type[Pruner]] = {"mmtok_cen": CentredMMTok}
"""Methods that no request can name."""


def measured_names() -> list[str]:
    """All that the benchmarks measure: the server's methods but those for free resolutions, then the variants."""
    served = [name for name in pruner_names() if not pruner_class(name).scales_pictures]
    return [*served, *PARAMETERS, *UNSERVED]


def measured(name: str, **params: float) -> Pruner:
    """The method or variant of a name; params: those of the architecture."""
    if name in UNSERVED:
        return UNSERVED[name](**params)
    method, own = PARAMETERS.get(name, (name, {}))
    return get_pruner(method, **params, **own)
