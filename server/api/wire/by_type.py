"""Unions of objects that are told apart by their field `type`."""

from typing import Any, get_args

from pydantic import Discriminator, GetCoreSchemaHandler, Tag
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_before_validator_function, tagged_union_schema

from covervlm.server.api.errors import UNSUPPORTED_PARAMETER, printable
from covervlm.server.core.wire import one_of

TEXT, PARTS = Tag("<text>"), Tag("<parts>")


def text_or_parts(parts: str) -> Discriminator:
    """Of a union whose branches are tagged TEXT and PARTS."""

    def tag(value: Any) -> str | None:
        return TEXT.tag if isinstance(value, str) else PARTS.tag if isinstance(value, list) else None

    return one_of(tag, f"a string or a list of {parts}")


class ByType:
    """Marks a model, or a union of them: each names its types in a Literal, and others are refused by their names.

    default: the type of an object that does not say.
    """

    def __init__(self, noun: str, *, default: str | None = None) -> None:
        self._noun = noun
        self._default = default

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        models = [model for model in get_args(source) or (source,) if model is not type(None)]
        choices = {
            f"<{kind}>": handler.generate_schema(model)
            for model in models
            for kind in get_args(model.model_fields["type"].annotation)
            if isinstance(kind, str)
        }
        names = [tag.strip("<>") for tag in choices]
        expected = " or ".join(filter(None, [", ".join(f"'{name}'" for name in names[:-1]), f"'{names[-1]}'"]))

        def kind_of(value: Any) -> Any:
            given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
            return self._default if given is None else given

        def known(value: Any) -> Any:
            kind = kind_of(value)
            if isinstance(value, dict) and isinstance(kind, str) and kind not in names:
                message = "{noun} of type '{type}' are not supported; use {expected}."
                context = {"noun": self._noun, "type": printable(kind[:40]), "expected": expected}
                raise PydanticCustomError(UNSUPPORTED_PARAMETER, message, context)
            return value

        def tag(value: Any) -> str | None:
            kind = kind_of(value)
            return f"<{kind}>" if isinstance(kind, str) else None

        union = tagged_union_schema(
            choices,
            tag,
            custom_error_type="value_type",
            custom_error_message=f"should be an object whose 'type' is {expected}",
        )
        return no_info_before_validator_function(known, union)
