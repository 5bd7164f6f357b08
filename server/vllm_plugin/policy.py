"""What a request asks of pruning, in `mm_processor_kwargs` or in the model's configuration, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError
from vllm.exceptions import VLLMValidationError

from covervlm.server.api.pruning_policy import VisionPruning, pruning_policy
from covervlm.server.engines.base import PruningPolicy
from covervlm.server.vllm_plugin.plan import FIELD


class VisionPrune(VisionPruning):
    """The `vision_prune` option: `vision_pruning` of the HTTP API without `coverage`, `return_indices` and the agent.

    question: the words that guide the selection, where the caller knows better than the prompt. seed: for `random`.
    """

    question: str | None = None
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)


class ServerWide(VisionPrune):
    """`vision_prune` in the model's configuration: what requests that ask for nothing get, and the plugin's memory.

    feature_cache_bytes: host memory of each worker for tower outputs of images seen before; 0 turns the cache off.
    """

    feature_cache_bytes: int = Field(default=512 * 2**20, ge=0)


@dataclass(frozen=True)
class Asked:
    """A request's policy, and its guiding words where the caller gave them."""

    policy: PruningPolicy
    question: str | None = None
    seed: int = 0
    explicit: bool = False

    def guiding_text(self, turns: Sequence[str]) -> str:
        """The text that guides the selection, out of the user's turns."""
        if self.question is not None:
            return self.question
        match self.policy.guide:
            case "first_user":
                return turns[0]
            case "all_user":
                return "\n".join(turns)
            case "none":
                return ""
            case _:
                return turns[-1]


def server_wide(config: Any) -> ServerWide:
    """The option in a model's configuration, which `--hf-overrides` sets; ValueError where it cannot work."""
    option = getattr(config, FIELD, None)
    if option is None:
        return ServerWide()
    parsed = _parsed(ServerWide, option)
    assert isinstance(parsed, ServerWide)
    return parsed


def asked(option: object, default: ServerWide) -> Asked:
    """The policy of one request: its own option, else the server's. Raises VLLMValidationError for a bad option."""
    base = pruning_policy(default, alias_budget=None, default=PruningPolicy())
    if option is None:
        return Asked(base, default.question, default.seed)
    own = _parsed(VisionPrune, option)
    policy = pruning_policy(own, alias_budget=None, default=base)
    return Asked(policy, own.question, own.seed, explicit=True)


def refusal(message: str, field: str = "") -> VLLMValidationError:
    """The error that vLLM answers with status 400."""
    return VLLMValidationError(message, parameter=f"{FIELD}.{field}" if field else FIELD)


def _parsed(model: type[VisionPrune], option: object) -> VisionPrune:
    if not isinstance(option, Mapping):
        raise refusal(f"{FIELD} should be an object such as {{'keep_tokens': 64}}")
    try:
        parsed = model.model_validate(dict(option))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        message = "is not an option of pruning" if first["type"] == "extra_forbidden" else first["msg"]
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
