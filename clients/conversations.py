"""Conversations about images: the chat completion, what pruning would keep, and the models that answer."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

from covervlm.clients.answers import ChatAnswer, Model, PruneResult
from covervlm.clients.calls import Call, given
from covervlm.clients.images import Images, ImageSource, sources
from covervlm.clients.messages import Message, user

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


def chat(image: Images, question: str, *, model: str | None = None, **options: Unpack[ChatOptions]) -> Call[ChatAnswer]:
    """The answer to a question about an image, or several in a list, or none (None). ChatOptions has the options.

    An image is a path, an http(s) or data URL, the bytes of a file, a PIL image or a numpy array.
    """
    return chat_messages([user(question, *sources(image))], model=model, **options)


def chat_messages(
    messages: Sequence[Message], *, model: str | None = None, **options: Unpack[ChatOptions]
) -> Call[ChatAnswer]:
    """The answer to a conversation; `covervlm.clients.user`, `assistant` and `system` make its messages."""
    return _completion(model, messages, **options)


def streamed(call: Call[ChatAnswer]) -> Call[ChatAnswer]:
    """The same chat completion as a stream of events."""
    return call.replace(body={**(call.body or {}), "stream": True, "stream_options": {"include_usage": True}})


def prune(
    image: ImageSource, question: str, *, model: str | None = None, **options: Unpack[PruneOptions]
) -> Call[PruneResult]:
    """Which vision tokens of an image a question keeps, without generating an answer."""
    return _pruning(model, [user(question, image)], **options)


def models() -> Call[list[Model]]:
    """The served model, then its names with a budget."""
    return Call("GET", "/v1/models", Model.read_list)


def _completion(
    model: str | None,
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
    sampling = {
        "max_completion_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop if stop is None or isinstance(stop, str) else list(stop),
    }
    body = _body(model, messages, sampling, _vision_pruning(**pruning), extra_body)
    return Call("POST", "/v1/chat/completions", ChatAnswer.read, body, timeout=timeout)


def _pruning(
    model: str | None,
    messages: Sequence[Message],
    *,
    timeout: float | None = None,
    extra_body: Mapping[str, Any] | None = None,
    **pruning: Any,
) -> Call[PruneResult]:
    body = _body(model, messages, {}, _vision_pruning(**pruning), extra_body)
    return Call("POST", "/v1/prune", PruneResult.read, body, timeout=timeout)


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
    return given(
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
    model: str | None,
    messages: Sequence[Message],
    sampling: Mapping[str, Any],
    pruning: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "messages": list(messages), **given(**sampling)}
    if pruning:
        body["vision_pruning"] = dict(pruning)
    return {**body, **(extra_body or {})}
