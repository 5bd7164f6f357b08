"""Class vectors from names and templates, in any image-text space."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.encoder.templates import ENSEMBLE, prompts


def class_proxies(
    embed: Callable[[list[str]], Tensor], names: Sequence[str], templates: Sequence[str] = ENSEMBLE
) -> Tensor:
    """(d, K) unit columns: the mean of each name's texts, which `embed` takes to (m, d) unit rows."""
    rows = embed(prompts(names, templates))
    return normalize(rows.unflatten(0, (len(names), len(templates))).mean(dim=1), dim=1).T.contiguous()
