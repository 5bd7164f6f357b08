"""The `vision_pruning` field of a request, and the policy that it makes with the model's name and the defaults."""

import math
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from covervlm.server.core.generation import Guide, PruningPolicy, Recipe
from covervlm.server.core.wire import Wire

MOST_IMAGES = 10_000
MOST_PARAMETERS, LONGEST_NAME = 32, 64
BUDGETS = ("keep_tokens", "keep_tokens_per_crop", "keep_ratio", "coverage")


def _counts(value: Any) -> Any:
    counts = value[: MOST_IMAGES + 1] if isinstance(value, list) else [value]
    if not counts or any(type(count) is not int or count < 1 for count in counts):
        raise PydanticCustomError(
            "invalid_value", "should be a whole number of at least 1, or a list of them with one per image"
        )
    if len(counts) > MOST_IMAGES:
        raise PydanticCustomError("invalid_value", f"may list {MOST_IMAGES} counts at most")
    return tuple(value) if isinstance(value, list) else value


def _scalar(value: Any) -> Any:
    if value is None:
        return value
    if (isinstance(value, float) and not math.isfinite(value)) or not isinstance(value, bool | int | float | str):
        raise PydanticCustomError("invalid_value", "should be a number, a text, true or false")
    return value


def _few(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if len(value) > MOST_PARAMETERS or any(len(name) > LONGEST_NAME for name in value):
        message = f"may have {MOST_PARAMETERS} parameters, with names of {LONGEST_NAME} characters at most"
        raise PydanticCustomError("invalid_value", message)
    return value


Scalar = Annotated[Any, BeforeValidator(_scalar, json_schema_input_type=bool | float | str | None)]
Parameters = Annotated[dict[str, Scalar], BeforeValidator(_few)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Counts = Annotated[int | tuple[int, ...], BeforeValidator(_counts, json_schema_input_type=int | list[int])]


class VisionPruning(Wire):
    """How many vision tokens of each image the language model reads, and which: at most one budget.

    The budget is `keep_tokens` (a count, or a list with one count per image), `keep_tokens_per_crop` (a count for each
    crop that the model cuts an image into), `keep_ratio` (a share of the image's tokens), or `coverage` (the smallest
    set that reaches this share of the full set's coverage, within `min_tokens` and `max_tokens`). Without one, the
    server's default applies; method `none` keeps every token. parameters: those of the method, by name, null for its
    own value. recipe:
    `released` does as the methods' released programs do where this server's defaults differ. question: the words that
    guide the selection, in place of the prompt's. seed: for `random`, else the request's own.
    """

    method: str | None = None
    keep_tokens: Counts | None = None
    keep_tokens_per_crop: Count | None = None
    keep_ratio: Share | None = None
    coverage: Share | None = None
    min_tokens: Count | None = None
    max_tokens: Count | None = None
    parameters: Parameters | None = None
    recipe: Recipe | None = None
    guide: Guide = "last_user"
    question: Annotated[str, Field(max_length=10_000)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    return_indices: bool | None = None

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are budgets of different kinds; set one")
        bounds = [name for name in ("min_tokens", "max_tokens") if getattr(self, name) is not None]
        if bounds and self.coverage is None:
            raise ValueError(f"{' and '.join(bounds)} can only be set together with coverage")
        if len(bounds) == 2 and self.min_tokens > self.max_tokens:  # type: ignore[operator]
            raise ValueError("min_tokens is more than max_tokens")
        return self

    @property
    def has_budget(self) -> bool:
        return any(getattr(self, name) is not None for name in BUDGETS)


def pruning_policy(
    asked: VisionPruning | None, *, alias_budget: int | None, default: PruningPolicy, return_indices: bool = False
) -> PruningPolicy:
    """The request's own budget, else the one in the model's name (`demo:64`), else the server's default."""
    asked = asked or VisionPruning()
    policy = default
    if asked.has_budget:
        policy = PruningPolicy(
            keep_tokens=asked.keep_tokens,
            keep_tokens_per_crop=asked.keep_tokens_per_crop,
            keep_ratio=asked.keep_ratio,
            coverage=asked.coverage,
            min_tokens=asked.min_tokens,
            max_tokens=asked.max_tokens,
        )
    elif alias_budget is not None:
        policy = PruningPolicy(keep_tokens=alias_budget)
    method = asked.method or default.method
    parameters = default.parameters if method == default.method else ()
    if asked.parameters is not None:
        parameters = tuple(sorted(asked.parameters.items()))
    return replace(
        policy,
        method=method,
        parameters=parameters,
        recipe=asked.recipe or default.recipe,
        named=asked.method is not None,
        guide=asked.guide,
        question=asked.question,
        seed=asked.seed,
        return_indices=return_indices if asked.return_indices is None else asked.return_indices,
    )
