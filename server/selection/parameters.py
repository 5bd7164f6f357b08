"""Parameters of a pruning method that a request gives, checked by the fields of the method's own dataclass."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from covervlm.pruners.registry import pruner_class
from covervlm.server.core.errors import InvalidRequest


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def checked(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as the method takes them, without those that are None, which are the method's own.

    Raises InvalidRequest naming the first that the method does not have or take.
    """
    model = _model(method)
    try:
        values = model.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            message = f"{method} has no parameter '{name[:64]}'; it has {known}."
        else:
            message = f"parameter {name} of {method}: {first['msg']}."
        raise InvalidRequest(message, param=f"vision_pruning.parameters.{name[:64]}", code="invalid_value") from None
    return {name: value for name in given if (value := getattr(values, name)) is not None}


def schemas(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The JSON schema of every method's parameters, by method."""
    return {method: _model(method).model_json_schema() | {"title": method} for method in methods}


@lru_cache(maxsize=256)
def _model(method: str) -> type[BaseModel]:
    cls = pruner_class(method)
    hints = get_type_hints(cls, include_extras=True)
    return create_model(
        f"{cls.__name__}Parameters",
        __base__=_Given,
        __doc__=(cls.__doc__ or "").partition("\n")[0],
        **{field.name: (hints[field.name] | None, field.default) for field in fields(cls)},  # type: ignore[call-overload]
    )
