"""The body of a chat completion, with OpenAI's names and rules: what is not supported is refused by name."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import with_info_after_validator_function

from covervlm.server.api.errors import UNSUPPORTED_PARAMETER, printable
from covervlm.server.api.pruning_policy import VisionPruning
from covervlm.server.engines.base import SamplingParams

INT64 = 2**63


class Wire(BaseModel):
    """JSON is taken at its word: no unknown fields, no numbers in strings."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Unless:
    """Accepts null and the values that ask for nothing; refuses any other by the field's name."""

    def __init__(self, *neutral: Any) -> None:
        self._neutral = (None, *neutral)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any, info: ValidationInfo) -> None:
            if value not in self._neutral:
                message = "'{name}' is not supported by this server."
                raise PydanticCustomError(UNSUPPORTED_PARAMETER, message, {"name": info.field_name})

        return with_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self._neutral)}


def _encodable(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no character and which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("contains half a surrogate pair, which is no character") from None
    return text


Unsupported = Annotated[Any, _Unless()]
Ignored = Any
Text = Annotated[str, AfterValidator(_encodable)]


class TextContent(Wire):
    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: Ignored = None


class RefusalContent(Wire):
    type: Literal["refusal"]
    refusal: Text


class ImageURL(Wire):
    """A base64 data URL, bare base64, or an http(s) URL; `detail` is accepted and changes nothing."""

    url: Text
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImageContent(Wire):
    type: Literal["image_url"]
    image_url: ImageURL
    prompt_cache_breakpoint: Ignored = None


class VideoURL(Wire):
    """A clip as its frames, data:video/jpeg;base64,FRAME,FRAME,... (vLLM's form); `fps`: frames to a second, else 2."""

    url: Text
    fps: Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)] | None = None


class VideoContent(Wire):
    type: Literal["video_url"]
    video_url: VideoURL
    prompt_cache_breakpoint: Ignored = None


def _known_part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind not in ("text", "image_url", "video_url", "refusal"):
        message = "Content parts of type '{type}' are not supported; use 'text', 'image_url' or 'video_url'."
        raise PydanticCustomError(UNSUPPORTED_PARAMETER, message, {"type": printable(kind[:40])})
    return part


def _content_tag(content: Any) -> str | None:
    return "text" if isinstance(content, str) else "parts" if isinstance(content, list) else None


ContentPart = Annotated[
    TextContent | ImageContent | VideoContent | RefusalContent, Discriminator("type"), BeforeValidator(_known_part)
]
Content = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[ContentPart], Field(min_length=1), Tag("parts")],
    Discriminator(
        _content_tag,
        custom_error_type="content_type",
        custom_error_message="should be a string or a list of content parts",
    ),
]


class ChatMessage(Wire):
    """One message. The fields after `name` are those of an assistant's message that is sent back unchanged."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Ignored = None
    refusal: Ignored = None
    annotations: Ignored = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Annotated[Any, _Unless([])] = None

    @field_validator("role", mode="before")
    @classmethod
    def _no_tools(cls, role: Any) -> Any:
        if role in ("tool", "function"):
            message = "Messages of role '{role}' are not supported by this server."
            raise PydanticCustomError(UNSUPPORTED_PARAMETER, message, {"role": role})
        return role

    @field_validator("content")
    @classmethod
    def _images_from_users(cls, content: Any, info: ValidationInfo) -> Any:
        if info.data.get("role") != "user" and any(isinstance(part, ImageContent | VideoContent) for part in content):
            raise ValueError("images and videos are only accepted in messages of role 'user'")
        return content


def _stop_strings(value: Any) -> Any:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(stop, str) and stop for stop in stops):
        raise PydanticCustomError("invalid_value", "should be a string, or a list of up to 4, none of them empty")
    return tuple(stops)


StopStrings = Annotated[tuple[Text, ...], BeforeValidator(_stop_strings, json_schema_input_type=str | list[str] | None)]


class StreamOptions(Wire):
    """`continuous_usage_stats` is vLLM's: with `include_usage`, every event carries the usage so far."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Ignored = None


class ChatCompletionRequest(Wire):
    """A chat completion request: OpenAI's fields, vLLM's sampling extensions, and `vision_pruning`."""

    model: Text
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    vision_pruning: VisionPruning | None = None

    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: StopStrings = ()
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # vLLM's extensions
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    ignore_eos: bool | None = None

    # Accepted for compatibility: they label or hint, and change no answer.
    metadata: Ignored = None
    parallel_tool_calls: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    user: Ignored = None

    # Refused by name, except for values that ask for nothing.
    audio: Unsupported = None
    function_call: Annotated[Any, _Unless("none")] = None
    functions: Annotated[Any, _Unless([])] = None
    logit_bias: Annotated[Any, _Unless({})] = None
    modalities: Annotated[Any, _Unless(["text"])] = None
    moderation: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Annotated[Any, _Unless("none")] = None
    response_format: Annotated[Any, _Unless({"type": "text"})] = None
    store: Annotated[Any, _Unless(False)] = None
    tool_choice: Annotated[Any, _Unless("none")] = None
    tools: Annotated[Any, _Unless([])] = None
    verbosity: Annotated[Any, _Unless("medium")] = None
    web_search_options: Unsupported = None

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("only allowed where 'logprobs' is true")
        return value

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("only allowed where 'stream' is true")
        return value

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def sampling(self) -> SamplingParams:
        """The engine's terms for these fields; what is absent keeps the default of OpenAI's API."""
        asked = {
            "max_tokens": self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "n": self.n,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "ignore_eos": self.ignore_eos,
        }
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return SamplingParams(stop=self.stop, **given)
