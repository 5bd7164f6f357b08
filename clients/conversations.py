"""Conversations about images: chat completions, what pruning would keep, and the models that answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypedDict, Unpack

from covervlm.clients.calls import Call, given
from covervlm.clients.images import ImageSource, pil_image, sources
from covervlm.clients.records import Record
from covervlm.clients.schemas import Schema, parsed, response_format
from covervlm.clients.videos import Media, Medium, media_part

if TYPE_CHECKING:
    from PIL.Image import Image

Guide: TypeAlias = Literal["last_user", "all_user", "first_user", "none", "agent"]
Message: TypeAlias = Mapping[str, Any]
"""What `user`, `assistant` and `system` make, or any message of OpenAI's API."""


def user(text: str, *images: Medium) -> Message:
    """A user's message: images first, then the text, as LLaVA's chat templates have it.

    An image is a path, an http(s) or data URL, the bytes of a file, a PIL image or a numpy array; or a Video.
    """
    parts = [media_part(image) for image in images]
    if text or not parts:
        parts.append({"type": "text", "text": text})
    return {"role": "user", "content": parts}


def assistant(text: str) -> Message:
    """An earlier answer of the model."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    """Instructions that hold for the whole conversation."""
    return {"role": "system", "content": text}


@dataclass(frozen=True)
class Usage(Record):
    """Tokens that the language model read and wrote; pruned vision tokens are not counted."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int
    text_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        return super().read({**body, **body["prompt_tokens_details"]})


@dataclass(frozen=True)
class PrunedImage(Record):
    """What became of one image's vision tokens.

    coverage: share of the full set's coverage, None for methods that do not measure it. milliseconds: time that the
    selection took. indices: the kept ones among the `total` tokens. grid: (rows, columns) of all tokens, which are in
    raster order. box: the area that the grid covers, (left, top, right, bottom) in pixels of the image. These three
    are None where they were not asked for; grid and box also where a model's tokens do not form a single grid.
    """

    total: int
    kept: int
    method: str
    coverage: float | None
    milliseconds: float
    indices: tuple[int, ...] | None = None
    grid: tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None

    def overlay(self, image: ImageSource) -> "Image":
        """The image with the dropped patches dimmed. Raises ValueError without indices or a grid."""
        from covervlm.clients.overlay import draw_overlay

        if self.indices is None or self.grid is None:
            raise ValueError("the answer has no indices on a grid to draw; ask with return_indices=True")
        return draw_overlay(pil_image(image).convert("RGB"), self.grid, self.indices, box=self.box)


@dataclass(frozen=True)
class PruneResult(PrunedImage):
    """What a question keeps of one image, and how many tokens the prompt would have.

    seconds: the time that each stage took, by its name.
    """

    prompt_tokens: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        return super().read({**body, **body["images"][0]})


@dataclass(frozen=True)
class ChatAnswer:
    """An answer, what it cost, and what was pruned for it.

    finish_reason: "stop", or "length" where it was cut off. images: one report per image of the request, in order.
    seconds: the time of each stage before the first token, by its name. parsed: what the text says by the `schema` that
    was asked for: an instance of a type, a dict for a schema that is one; None without. raw: the response's JSON; None
    for a streamed answer.
    """

    id: str
    model: str
    text: str
    finish_reason: str
    usage: Usage
    images: tuple[PrunedImage, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    parsed: Any = None
    raw: Mapping[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def read(cls, body: Mapping[str, Any], schema: Schema | None = None) -> Self:
        """Raises ResponseFormatError where the text does not follow the schema."""
        choice = body["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
        images, seconds = read_pruning(body.get("vision_pruning"))
        value = None if schema is None else parsed(text, schema, cut=reason == "length")
        return cls(body["id"], body["model"], text, reason, Usage.read(body["usage"]), images, seconds, value, body)


@dataclass(frozen=True)
class Model(Record):
    """A served model, or its name with a budget such as demo:64.

    vision_tokens: of one image; None where that depends on the image. keep_tokens: the budget in the name. All three
    numbers are None for the model that embeds.
    """

    id: str
    context_length: int | None
    vision_tokens: int | None
    keep_tokens: int | None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        return super().read({**body, "context_length": body["max_model_len"]})


def read_pruning(block: Mapping[str, Any] | None) -> tuple[tuple[PrunedImage, ...], Mapping[str, float]]:
    """Images and seconds of a `vision_pruning` block, which is missing (None) where the request has no images."""
    if block is None:
        return (), {}
    return tuple(PrunedImage.read(image) for image in block["images"]), block["seconds"]


class PruneOptions(TypedDict, total=False):
    """What all calls about images take. At most one budget; without one the server's default applies.

    keep_tokens: vision tokens to keep of each image, or a list with one count per image. keep_tokens_per_crop: of each
    crop that the model cuts an image into. keep_ratio: a share of them. coverage: keep the smallest set that reaches
    this share of the full set's coverage, of at least min_keep and at most max_keep tokens. method: e.g. mmtok; "none"
    keeps everything. parameters: the method's, by name. recipe: "released" does as the methods' released programs do.
    guide: whose words the selection follows.
    timeout: seconds without a byte from the server. extra_body: further fields of the request's body.
    """

    keep_tokens: int | Sequence[int] | None
    keep_tokens_per_crop: int | None
    keep_ratio: float | None
    coverage: float | None
    min_keep: int | None
    max_keep: int | None
    method: str | None
    parameters: Mapping[str, Any] | None
    recipe: Literal["default", "released"] | None
    guide: Guide | None
    timeout: float | None
    extra_body: Mapping[str, Any] | None


class ChatOptions(PruneOptions, total=False):
    """Sampling in OpenAI's terms, and return_indices: whether the answer tells which patches were kept.

    schema: what the answer is held to, a JSON schema as a dict or, with pydantic, a model class or any other type that
    pydantic knows; the answer's `parsed` is then a dict or an instance, which has been checked.
    """

    schema: Schema | None
    return_indices: bool | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None


_PRUNING = (
    *("keep_tokens", "keep_tokens_per_crop", "keep_ratio", "coverage", "min_keep", "max_keep"),
    *("method", "parameters", "recipe", "guide", "return_indices"),
)
_SAMPLING = ("max_tokens", "temperature", "top_p", "seed", "stop")
_SPELLED = {"min_keep": "min_tokens", "max_keep": "max_tokens", "max_tokens": "max_completion_tokens"}
"""Options that have another name in the request's body."""


def chat(image: Media, question: str, *, model: str | None = None, **options: Unpack[ChatOptions]) -> Call[ChatAnswer]:
    """The answer to a question about an image, or several in a list, or none (None). ChatOptions has the options.

    An image is a path, an http(s) or data URL, the bytes of a file, a PIL image or a numpy array; or a Video.
    """
    return chat_messages([user(question, *sources(image))], model=model, **options)


def chat_messages(
    messages: Sequence[Message], *, model: str | None = None, **options: Unpack[ChatOptions]
) -> Call[ChatAnswer]:
    """The answer to a conversation; `covervlm.clients.user`, `assistant` and `system` make its messages."""
    schema = options.pop("schema", None)
    form = {} if schema is None else {"response_format": response_format(schema)}
    body = form | _body(model, messages, options, _SAMPLING)
    read = partial(ChatAnswer.read, schema=schema)
    return Call("POST", "/v1/chat/completions", read, body, timeout=options.get("timeout"))


def streamed(call: Call[ChatAnswer]) -> Call[ChatAnswer]:
    """The same chat completion as a stream of events."""
    return call.with_body({**(call.body or {}), "stream": True, "stream_options": {"include_usage": True}})


def prune(
    image: Medium, question: str, *, model: str | None = None, **options: Unpack[PruneOptions]
) -> Call[PruneResult]:
    """Which vision tokens of an image or a Video a question keeps, without generating an answer."""
    body = _body(model, [user(question, image)], options, ())
    return Call("POST", "/v1/prune", PruneResult.read, body, timeout=options.get("timeout"))


def models() -> Call[list[Model]]:
    """The served model, then its names with a budget."""
    return Call("GET", "/v1/models", Model.read_list)


def _body(
    model: str | None, messages: Sequence[Message], options: Mapping[str, Any], sampling: Sequence[str]
) -> dict[str, Any]:
    """The request's body. sampling: which sampling options it may have. Raises TypeError for an unknown option."""
    if unknown := options.keys() - {*_PRUNING, *sampling, "timeout", "extra_body"}:
        raise TypeError(f"there is no option {min(unknown)!r}")

    def chosen(names: Sequence[str]) -> dict[str, Any]:
        return given(**{_SPELLED.get(name, name): _as_json(options.get(name)) for name in names})

    pruning = given(vision_pruning=chosen(_PRUNING) or None)
    extra = options.get("extra_body") or {}
    return {"model": model, "messages": list(messages), **chosen(sampling), **pruning, **extra}


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
