"""What a request asks of pruning, in `mm_processor_kwargs` or in the model's configuration, checked.

The option `vision_prune` is `vision_pruning` of the HTTP API without `coverage`, `return_indices` and the agent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from vllm.exceptions import VLLMValidationError

from covervlm.server.core.generation import PruningPolicy
from covervlm.server.core.pruning_policy import VisionPruning, pruning_policy
from covervlm.server.core.wire import UNKNOWN
from covervlm.server.engines.vllm.plugin.plan import FIELD


class ServerWide(VisionPruning):
    """`vision_prune` in the model's configuration: what requests that ask for nothing get, and the plugin's memory.

    feature_cache_bytes: host memory of each worker for tower outputs of images seen before; 0 turns the cache off.
    methods: those that requests may name beside none; all where it is empty.
    """

    feature_cache_bytes: int = Field(default=512 * 2**20, ge=0)
    methods: list[str] = Field(default_factory=list)


P = TypeVar("P", bound=VisionPruning)


@dataclass(frozen=True)
class Asked:
    """A request's policy, and its guiding words where the caller gave them."""

    policy: PruningPolicy
    question: str | None = None
    seed: int = 0
    explicit: bool = False


def server_wide(config: Any) -> ServerWide:
    """The option in a model's configuration, which `--hf-overrides` sets; ValueError where it cannot work."""
    option = getattr(config, FIELD, None)
    return ServerWide() if option is None else _parsed(ServerWide, option)


def asked(option: object, default: ServerWide) -> Asked:
    """The policy of one request: its own option, else the server's. Raises VLLMValidationError for a bad option."""
    base = pruning_policy(default, alias_budget=None, default=PruningPolicy())
    if option is None:
        return Asked(base, default.question, default.seed or 0)
    own = _parsed(VisionPruning, option)
    policy = pruning_policy(own, alias_budget=None, default=base)
    return Asked(policy, own.question, own.seed or 0, explicit=True)


def refusal(message: str, field: str = "") -> VLLMValidationError:
    """The error that vLLM answers with status 400."""
    return VLLMValidationError(message, parameter=f"{FIELD}.{field}" if field else FIELD)


def _parsed(model: type[P], option: object) -> P:
    if not isinstance(option, Mapping):
        raise refusal(f"{FIELD} should be an object such as {{'keep_tokens': 64}}")
    try:
        parsed = model.model_validate(dict(option))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        unknown = first["type"] == UNKNOWN
        place = (*first["loc"], first["ctx"]["name"]) if unknown else first["loc"]
        field = ".".join(str(step) for step in place[:2] if isinstance(step, str))
        message = "is not an option of pruning" if unknown else first["msg"]
        raise refusal(f"{FIELD}{'.' if field else ''}{field}: {message}", field) from None
    if parsed.coverage is not None:
        raise refusal(
            "coverage budgets are not possible under vLLM, which must know the number of vision tokens before it "
            "looks at the image; use keep_tokens or keep_ratio",
            "coverage",
        )
    if parsed.guide == "agent":
        raise refusal("guide 'agent' is for covervlm's own server; send the agent's words as question", "guide")
    if parsed.return_indices:
        raise refusal("vLLM's answers have no place for indices; use covervlm's own server", "return_indices")
    return parsed
