"""How an answer is sampled and streamed: the fields that the bodies of all APIs share, in OpenAI's and vLLM's words."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import with_info_after_validator_function

from covervlm.server.api.errors import UNSUPPORTED_PARAMETER
from covervlm.server.api.wire.structure import ResponseFormat, Schema, StructuredOutputs, grammar_of
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import SamplingParams
from covervlm.server.core.wire import Wire

INT64 = 2**63
LONGEST_STOP = 1000
MOST_LOGPROBS = 20
"""Most alternatives for one token."""
MOST_ALLOWED = 2**18
"""As many as any vocabulary has tokens."""
_FORMS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
    "grammar": "grammar",
}
"""Fields that hold the answer to a form, and which of Grammar's kinds that is."""


class Unless:
    """Accepts null and the values that ask for nothing; refuses any other by the field's name."""

    def __init__(self, *neutral: Any, instead: str = "") -> None:
        """instead: what to do in its place, for the end of the refusal."""
        self.neutral = (None, *neutral)
        self.instead = instead and f"; {instead}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any, info: ValidationInfo) -> None:
            if value not in self.neutral:
                message = "'{name}' is not supported by this server{instead}."
                context = {"name": info.field_name, "instead": self.instead}
                raise PydanticCustomError(UNSUPPORTED_PARAMETER, message, context)

        return with_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self.neutral)}


Unsupported = Annotated[Any, Unless()]
Ignored = Any
Text = str
"""JSON that spells half a surrogate pair, which no tokenizer takes, is refused when the body is parsed."""


def _stop_strings(value: Any) -> Any:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(stop, str) and stop for stop in stops):
        raise PydanticCustomError("invalid_value", "should be a string, or a list of up to 4, none of them empty")
    if any(len(stop) > LONGEST_STOP for stop in stops):
        raise PydanticCustomError("invalid_value", f"may have {LONGEST_STOP} characters at most in each string")
    return tuple(stops)


def _unlimited(top_k: int) -> int:
    """0 and -1 both mean no limit, as in vLLM."""
    return max(top_k, 0)


StopStrings = Annotated[tuple[Text, ...], BeforeValidator(_stop_strings, json_schema_input_type=str | list[str] | None)]


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Word = Annotated[Text, Field(min_length=1, max_length=256)]


def _token_ids(bias: Any) -> Any:
    """Token ids from JSON's keys, which are strings."""
    if not isinstance(bias, dict):
        return bias
    if not all(isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10 for token in bias):
        raise PydanticCustomError("invalid_value", "should have token ids as keys")
    return {int(token): value for token, value in bias.items()}


LogitBias = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]],
    BeforeValidator(_token_ids, json_schema_input_type=dict[str, float]),
    Field(max_length=1024),
]


class StreamOptions(Wire):
    """`continuous_usage_stats` is vLLM's: with `include_usage`, every event carries the usage so far."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Ignored = None


class SamplingFields(Wire):
    """What every API that generates takes, under the names of SamplingParams where that has them."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: StopStrings = ()
    logit_bias: LogitBias | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # vLLM's extensions
    top_k: Annotated[int, Field(ge=-1), AfterValidator(_unlimited)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: Annotated[list[Word], Field(max_length=128)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MOST_ALLOWED)] | None = None
    logprob_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1)] | None = None
    guided_grammar: str | None = None
    json_schema: Schema | None = None  # these four as SGLang and llama.cpp spell them
    regex: str | None = None
    ebnf: str | None = None
    grammar: str | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    # Accepted for compatibility: they label or hint, and change no answer.
    user: Ignored = None
    cache_salt: Ignored = None
    request_id: Ignored = None
    session_id: Ignored = None
    truncation_side: Ignored = None

    # vLLM's that are refused by name, except for values that ask for nothing.
    best_of: Annotated[Any, Unless(1)] = None
    ec_transfer_params: Unsupported = None
    kv_transfer_params: Unsupported = None
    length_penalty: Annotated[Any, Unless(1)] = None
    mm_payload: Annotated[Any, Unless("tensors")] = None
    priority: Annotated[Any, Unless(0)] = None
    repetition_detection: Unsupported = None
    return_mm_kwargs: Annotated[Any, Unless(False)] = None
    return_token_offsets: Annotated[Any, Unless(False)] = None
    routed_experts_prompt_start: Annotated[Any, Unless(0)] = None
    spaces_between_special_tokens: Annotated[Any, Unless(True)] = None
    stream_interval: Annotated[Any, Unless(1)] = None
    thinking_token_budget: Unsupported = None
    truncate_prompt_tokens: Unsupported = None
    use_beam_search: Annotated[Any, Unless(False)] = None
    vllm_xargs: Annotated[Any, Unless({})] = None
    watermarking: Annotated[Any, Unless(False)] = None

    @field_validator("prompt_logprobs")
    @classmethod
    def _not_streamed(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("stream"):
            raise ValueError("only allowed where 'stream' is not true")
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

    def sampled(self, defaults: Mapping[str, Any], **own: Any) -> SamplingParams:
        """The engine's terms for these fields.

        defaults: the model's own, for what is absent; what it does not name has the default of OpenAI's API. own: what
        one API alone has, or spells in its own way, by the names of SamplingParams. Raises InvalidRequest for a form
        that no answer can be held to.
        """
        given: dict[str, Any] = dict(defaults)
        asked = {name: getattr(self, name) for name in _SHARED} | own
        given |= {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in asked.items()
            if value is not None
        }
        forms = {name: (kind, value) for name, kind in _FORMS.items() if (value := getattr(self, name)) is not None}
        if forms or self.response_format is not None or self.structured_outputs is not None:
            given["grammar"] = grammar_of(self.response_format, self.structured_outputs, forms)
        params = SamplingParams(**given)
        if params.logprob_token_ids and not params.logprobs:
            message = "Invalid 'logprob_token_ids': only allowed where 'logprobs' asks for log probabilities."
            raise InvalidRequest(message, param="logprob_token_ids", code="invalid_value")
        if params.max_tokens is not None and params.min_tokens > params.max_tokens:
            raise InvalidRequest(
                f"Invalid 'min_tokens': should not be more than the {params.max_tokens} tokens of the whole answer.",
                param="min_tokens",
                code="invalid_value",
            )
        return params


_SHARED = [field.name for field in fields(SamplingParams) if field.name in SamplingFields.model_fields]
