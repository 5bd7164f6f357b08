"""How a chat becomes a text: what a request tells the model's chat template beside the messages."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from covervlm.server.api.wire.sampling import Unless, Unsupported
from covervlm.server.core.wire import Wire

MOST_VARIABLES = 64
MOST_CHARACTERS = 4096
"""Most characters of all names and values; a template may write them once for every message."""
_DEEPEST = 4
_RENDERING = """
add_generation_prompt chat_template continue_final_message documents messages tools tokenize return_dict return_tensors
processor_kwargs return_assistant_tokens_mask sanitize_control_tokens load_audio_from_video
raise_exception strftime_now range dict lipsum cycler joiner namespace self
"""
_TAKEN = frozenset(_RENDERING.split())
"""Names that mean something else to a template, or to what applies it."""


def _size(value: Any, depth: int = 0) -> int:
    """Characters of a value in JSON, about; raises ValueError for one that is too deep or too large to be looked at."""
    if depth > _DEEPEST:
        raise ValueError
    if isinstance(value, dict | list):
        if len(value) > MOST_CHARACTERS:
            raise ValueError
        named = value.items() if isinstance(value, dict) else (("", one) for one in value)
        return sum(2 + len(name) + _size(one, depth + 1) for name, one in named)
    return len(str(value)) if not isinstance(value, int) or value.bit_length() < 64 else MOST_CHARACTERS


def _variables(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    for name in list(value)[: MOST_VARIABLES + 1]:
        if not isinstance(name, str) or not name.isidentifier() or name in _TAKEN or name.endswith("_token"):
            message = "has '{name}', which is not a variable that a request can set"
            raise PydanticCustomError(
                "invalid_value", message, {"name": str(name)[:40].encode("utf-8", "replace").decode()}
            )
    try:
        fits = len(value) <= MOST_VARIABLES and _size(value) <= MOST_CHARACTERS
    except ValueError:
        fits = False
    if not fits:
        message = f"may have {MOST_VARIABLES} variables, {MOST_CHARACTERS} characters and {_DEEPEST} levels at most"
        raise PydanticCustomError("invalid_value", message)
    return value


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateFields(Wire):
    """vLLM's: `chat_template_kwargs` are variables for templates that read them, for others they change nothing.

    So is OpenAI's `reasoning_effort`, whose variables are that and `enable_thinking`, which is false for "none".
    """

    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(_variables)] | None = None
    reasoning_effort: Effort | None = None
    chat_template: Unsupported = None
    documents: Annotated[Any, Unless([])] = None

    @field_validator("add_generation_prompt")
    @classmethod
    def _one_of_both(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("continue_final_message"):
            raise ValueError("should not be true where 'continue_final_message' is")
        return value

    @property
    def variables(self) -> dict[str, Any]:
        """What the template is told; `chat_template_kwargs` have the last word."""
        effort = self.reasoning_effort
        asked = {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        return asked | (self.chat_template_kwargs or {})
