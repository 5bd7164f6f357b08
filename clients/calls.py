"""Requests as plain values: method, path, body, and how the answer is read; no network in here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar

from covervlm.clients.answers import ChatAnswer, Model, PruneResult
from covervlm.clients.messages import Message

Result = TypeVar("Result")
Guide: TypeAlias = Literal["last_user", "all_user", "first_user", "none", "agent"]


class PruneOptions(TypedDict, total=False):
    """What all calls about images take. At most one budget; without one the server's default applies.

    keep_tokens: vision tokens kept of each image, or a list with one count per image. keep_ratio: a share of them.
    coverage: the smallest set that reaches this share of the full set's coverage, of at least min_keep and at most
    max_keep tokens. method: e.g. mmtok; "none" keeps everything. guide: whose words the selection follows.
    timeout: seconds without a byte from the server. extra_body: further fields of the request's body.
    """

    keep_tokens: int | Sequence[int] | None
    keep_ratio: float | None
    coverage: float | None
    min_keep: int | None
    max_keep: int | None
    method: str | None
    guide: Guide | None
    timeout: float | None
    extra_body: Mapping[str, Any] | None


class ChatOptions(PruneOptions, total=False):
    """Sampling in OpenAI's terms, and return_indices: whether the answer tells which patches were kept."""

    return_indices: bool | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One request. `read` makes the result from the answer's JSON; `timeout` is the client's where None."""

    method: str
    path: str
    read: Callable[[Any], Result]
    body: Mapping[str, Any] | None = None
    timeout: float | None = None


def list_models() -> Call[list[Model]]:
    return Call("GET", "/v1/models", Model.read_list)


def chat(
    model: str,
    messages: Sequence[Message],
    *,
    timeout: float | None = None,
    extra_body: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    **pruning: Any,
) -> Call[ChatAnswer]:
    """A chat completion. Raises TypeError for options that there are not."""
    sampling = {
        "max_completion_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop if stop is None or isinstance(stop, str) else list(stop),
    }
    body = _body(model, messages, sampling, _vision_pruning(**pruning), extra_body)
    return Call("POST", "/v1/chat/completions", ChatAnswer.read, body, timeout)


def streamed(call: Call[ChatAnswer]) -> Call[ChatAnswer]:
    """The same chat completion as a stream of events."""
    body = {**(call.body or {}), "stream": True, "stream_options": {"include_usage": True}}
    return Call(call.method, call.path, call.read, body, call.timeout)


def prune(
    model: str,
    messages: Sequence[Message],
    *,
    timeout: float | None = None,
    extra_body: Mapping[str, Any] | None = None,
    **pruning: Any,
) -> Call[PruneResult]:
    """What a question keeps of one image. Raises TypeError for options that there are not."""
    body = _body(model, messages, {}, _vision_pruning(**pruning), extra_body)
    return Call("POST", "/v1/prune", PruneResult.read, body, timeout)


def _vision_pruning(
    *,
    keep_tokens: int | Sequence[int] | None = None,
    keep_ratio: float | None = None,
    coverage: float | None = None,
    min_keep: int | None = None,
    max_keep: int | None = None,
    method: str | None = None,
    guide: Guide | None = None,
    return_indices: bool | None = None,
) -> dict[str, Any]:
    return _given(
        keep_tokens=keep_tokens if keep_tokens is None or isinstance(keep_tokens, int) else list(keep_tokens),
        keep_ratio=keep_ratio,
        coverage=coverage,
        min_tokens=min_keep,
        max_tokens=max_keep,
        method=method,
        guide=guide,
        return_indices=return_indices,
    )


def _body(
    model: str,
    messages: Sequence[Message],
    sampling: Mapping[str, Any],
    pruning: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "messages": list(messages), **_given(**sampling)}
    if pruning:
        body["vision_pruning"] = dict(pruning)
    return {**body, **(extra_body or {})}


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
