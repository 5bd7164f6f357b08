"""Bodies that name a method of the CLIP model and carry its parameters: one schema for each method of a kind."""

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_type_hints

from pydantic import Discriminator, Field, GetCoreSchemaHandler, Tag, WithJsonSchema, create_model
from pydantic_core import CoreSchema

from covervlm.server.clip.methods.registry import Kind, method_class, method_names
from covervlm.server.core.wire import Wire


class MethodBody(Wire):
    """A body that names a method; `OneOf` gives it the parameters of one."""

    method: str
    parameters: Any = None

    def chosen(self) -> dict[str, Any]:
        """The method's name and its parameters."""
        return {"method": self.method, "parameters": self.parameters.model_dump() if self.parameters else {}}


class OneOf:
    """Marks the type of a body: `Annotated[Body, OneOf("group")]` is Body for one of the kind's methods.

    `method` tells them apart; without it, it is the first one, or one of `defaults`, as `default` says of the body. The
    methods, and torch with them, are imported when a route with such a body is made.
    """

    def __init__(
        self, *kinds: Kind, default: Callable[[Any], str] | None = None, defaults: tuple[str, ...] = ()
    ) -> None:
        self._kinds = kinds
        self._default = default
        self._defaults = defaults

    def __get_pydantic_core_schema__(self, source: type[MethodBody], handler: GetCoreSchemaHandler) -> CoreSchema:
        methods = {name: method_class(kind, name) for kind in self._kinds for name in method_names(kind)}
        names = tuple(methods)
        defaults = self._defaults or names[:1]
        variants = {name: _variant(source, cls, name, names, name in defaults) for name, cls in methods.items()}
        if len(names) == 1:
            return handler.generate_schema(variants[names[0]])

        def branch(body: Any) -> str:
            named = body.get("method") if isinstance(body, dict) else getattr(body, "method", None)
            if named is None and self._default is not None:
                named = self._default(body)
            return f"<{named if isinstance(named, str) and named in names else names[0]}>"

        tagged = tuple(Annotated[variant, Tag(f"<{name}>")] for name, variant in variants.items())
        return handler.generate_schema(Annotated[Union[tagged], Discriminator(branch)])  # noqa: UP007


@cache
def _variant(base: type[MethodBody], cls: type, name: str, names: tuple[str, ...], default: bool) -> type[MethodBody]:
    """Any of the names is accepted, so that a wrong one is refused with all of them; the schema has the right one."""
    hints = get_type_hints(cls, include_extras=True)
    parameters = create_model(
        f"{cls.__name__}Parameters",
        __base__=Wire,
        __doc__=cls.__doc__,
        **{field.name: (hints[field.name], field.default) for field in fields(cls)},  # type: ignore[call-overload]
    )
    method = Annotated[Literal[names], WithJsonSchema({"type": "string", "const": name})]  # type: ignore[valid-type]
    return create_model(
        f"{cls.__name__}{base.__name__}",
        __base__=base,
        __doc__=base.__doc__,
        method=(method, Field(default=name) if default else ...),
        parameters=(parameters | None, None),
    )
