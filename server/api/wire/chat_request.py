"""The body of a chat completion, with OpenAI's names and rules: what is not supported is refused by name."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from covervlm.server.api.wire.by_type import PARTS, TEXT, ByType, text_or_parts
from covervlm.server.api.wire.chat_template import TemplateFields
from covervlm.server.api.wire.sampling import MOST_LOGPROBS, Ignored, SamplingFields, Text, Unless, Unsupported
from covervlm.server.api.wire.tools import MOST_TOOLS, AnyTool, NamedChoice, ToolChoice
from covervlm.server.core.generation import USUAL, SamplingParams, TemplateOptions
from covervlm.server.core.pruning_policy import VisionPruning
from covervlm.server.core.wire import Wire


def items(most: int, least: int = 1) -> Any:
    """The bounds of a list, of which the first bad item is enough."""
    return Field(min_length=least, max_length=most, fail_fast=True)


MOST_MESSAGES = 10_000
"""Most messages of a request, and most parts of a message."""


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


def _in_an_object(value: Any) -> Any:
    """The value, unless it is a URL by itself, as other APIs have it: what to write instead is then said."""
    if isinstance(value, str):
        raise PydanticCustomError("url_type", 'should be an object that holds the URL, {"url": "data:..."}')
    return value


class ImageContent(Wire):
    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_in_an_object)]
    prompt_cache_breakpoint: Ignored = None


class VideoURL(Wire):
    """A clip: a file (MP4, MOV, WebM, MKV, AVI, GIF), or its frames, data:video/jpeg;base64,FRAME,FRAME,... as in vLLM.

    `fps`: how many frames to a second are sampled from a file, else 32 over all of it; what a list has, else 2.
    """

    url: Text
    fps: Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)] | None = None


class VideoContent(Wire):
    type: Literal["video_url"]
    video_url: Annotated[VideoURL, BeforeValidator(_in_an_object)]
    prompt_cache_breakpoint: Ignored = None


ContentPart = Annotated[TextContent | ImageContent | VideoContent | RefusalContent, ByType("Content parts")]
Content = Annotated[
    Annotated[Text, TEXT] | Annotated[list[ContentPart], items(MOST_MESSAGES), PARTS], text_or_parts("content parts")
]


class FunctionCall(Wire):
    name: Annotated[Text, Field(min_length=1, max_length=256)]
    arguments: Text


class ToolCallPart(Wire):
    id: Annotated[Text, Field(max_length=256)] = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Wire):
    """One message. An assistant's may come back as it was sent, also without content, and a tool's is a result."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Content | None, Field(validate_default=True)] = None
    name: Ignored = None
    refusal: Text | None = None
    annotations: Ignored = None
    audio: Unsupported = None
    function_call: Unsupported = None
    reasoning_content: Ignored = None
    tool_calls: Annotated[list[ToolCallPart], items(128, 0)] = Field(default_factory=list)
    tool_call_id: Annotated[Text, Field(max_length=256)] | None = None

    @property
    def parts(self) -> Sequence[ContentPart]:
        """Empty where the content is a text."""
        return self.content if isinstance(self.content, list) else []

    @property
    def text(self) -> str:
        """What a message without parts says."""
        return self.content if isinstance(self.content, str) else self.refusal or ""

    @field_validator("content", mode="before")
    @classmethod
    def _only_assistants_say_nothing(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and info.data.get("role") not in ("assistant", None):
            raise PydanticCustomError("missing", "Field required")
        return content

    @field_validator("tool_calls")
    @classmethod
    def _only_assistants_call(cls, calls: Any, info: ValidationInfo) -> Any:
        if calls and info.data.get("role") != "assistant":
            raise ValueError("only allowed in messages of role 'assistant'")
        return calls

    @field_validator("content")
    @classmethod
    def _images_from_users(cls, content: Any, info: ValidationInfo) -> Any:
        parts = content if isinstance(content, list) and info.data.get("role") != "user" else []
        if any(isinstance(part, ImageContent | VideoContent) for part in parts):
            raise ValueError("images and videos are only accepted in messages of role 'user'")
        return content


class ProcessorOptions(Wire):
    """vLLM's place for options of the image processor; `vision_prune` is how its plugin spells `vision_pruning`."""

    vision_prune: VisionPruning | None = None


class ChatPrompt(TemplateFields):
    """The part of a request that becomes a prompt: messages, pruning of their images, options of the chat template."""

    model: Text = ""
    messages: Annotated[list[ChatMessage], items(MOST_MESSAGES)]
    vision_pruning: VisionPruning | None = None
    mm_processor_kwargs: ProcessorOptions | None = None

    tools: Annotated[list[AnyTool], items(MOST_TOOLS, 0)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @field_validator("mm_processor_kwargs")
    @classmethod
    def _said_once(cls, value: ProcessorOptions | None, info: ValidationInfo) -> ProcessorOptions | None:
        if value is not None and value.vision_prune is not None and info.data.get("vision_pruning") is not None:
            raise ValueError("'vision_prune' says the same as 'vision_pruning'; set one of them")
        return value

    @property
    def pruning(self) -> VisionPruning | None:
        """What is asked of pruning, in either spelling."""
        options = self.mm_processor_kwargs
        return options.vision_prune if options is not None and options.vision_prune else self.vision_pruning

    @property
    def template(self) -> TemplateOptions:
        """What is asked of the chat template."""
        continues = bool(self.continue_final_message)
        begins = not continues if self.add_generation_prompt is None else self.add_generation_prompt
        variables, specials = self.variables, bool(self.add_special_tokens)
        if begins and not (continues or specials or variables):
            return USUAL
        return TemplateOptions(begins, continues, specials, variables)

    @field_validator("tool_choice")
    @classmethod
    def _chooses_a_tool(cls, choice: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        tools = info.data.get("tools") or []
        if choice not in (None, "none") and not tools and "tools" in info.data:
            raise ValueError("only allowed where there are 'tools'")
        names = [tool.function.name for tool in tools]
        if isinstance(choice, NamedChoice) and names and choice.function.name not in names:
            raise ValueError(f"names '{choice.function.name}', which is not one of 'tools'")
        return choice

    def sampling(self, defaults: Mapping[str, Any] = MappingProxyType({})) -> SamplingParams:
        """A prompt alone samples nothing."""
        return SamplingParams()


class ChatCompletionRequest(SamplingFields, ChatPrompt):
    """A chat completion request: OpenAI's fields, vLLM's extensions, and `vision_pruning`."""

    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None

    # Accepted for compatibility: they label or hint, and change no answer.
    metadata: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    include_reasoning: Ignored = None

    # Refused by name, except for values that ask for nothing.
    audio: Unsupported = None
    function_call: Annotated[Any, Unless("none")] = None
    functions: Annotated[Any, Unless([])] = None
    modalities: Annotated[Any, Unless(["text"])] = None
    moderation: Unsupported = None
    prediction: Unsupported = None
    store: Annotated[Any, Unless(False)] = None
    verbosity: Annotated[Any, Unless("medium")] = None
    web_search_options: Unsupported = None

    # vLLM's that are refused in the same way.
    media_io_kwargs: Annotated[
        Any, Unless({}, instead="how many frames to a second are taken of a video is said by 'fps' in its 'video_url'")
    ] = None
    return_prompt_text: Annotated[Any, Unless(False)] = None

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("only allowed where 'logprobs' is true")
        return value

    @property
    def names(self) -> dict[str, str]:
        """The name that the caller chose for a field of two names, where an error would have the other one."""
        return {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}

    def sampling(self, defaults: Mapping[str, Any] = MappingProxyType({})) -> SamplingParams:
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self.sampled(
            defaults,
            max_tokens=limit,
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
        )
