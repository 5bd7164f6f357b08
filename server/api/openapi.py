"""What /openapi.json says beyond what routes declare themselves: keys, events, and bodies that are files."""

import asyncio
import functools
from collections.abc import Collection, Sequence
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

REF = "#/components/schemas/{model}"
FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
FILE_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/octet-stream": FILE}}}
"""A route whose body is a file rather than JSON; for its `openapi_extra`."""

FILE_ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": FILE}}}
TEXT_ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def tensors_file(data: bytes, name: str) -> Response:
    """The answer of a route that has FILE_ANSWER."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type="application/octet-stream", headers=headers)


def events_of(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """A route that answers, or may answer, with server-sent events whose data is `model` in JSON.

    The schema has no type: OpenAPI 3.1 leaves open whether it describes the text or an event, and readers differ.
    """
    text = f"Events of the form 'data: JSON', the JSON being a {model.__name__} or an ErrorBody; the last is [DONE]."
    return {200: {"content": {"text/event-stream": {"schema": {"description": text}}}}}


def document(
    app: FastAPI,
    events: Sequence[type[BaseModel]],
    *,
    without_key: Collection[str] | None,
    methods: Collection[str] = (),
) -> None:
    """Add to the schema what it cannot tell from the routes.

    events: models of server-sent events. without_key: all other paths need a key (None: no path does). methods:
    pruning methods whose parameters to describe, all where it is empty.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            _, extra = models_json_schema([(model, "serialization") for model in events], ref_template=REF)
            components = schema["components"]
            components["schemas"] = {**extra["$defs"], **components["schemas"]}
            _describe_parameters(components["schemas"], methods)
            if without_key is not None:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                for path, operations in schema["paths"].items():
                    for operation in operations.values():
                        operation["security"] = [] if path in without_key else [{"key": []}]
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]

    @functools.cache
    def written() -> bytes:
        return bytes(JSONResponse(openapi()).body)

    @app.get("/openapi.json", include_in_schema=False)
    async def show() -> Response:
        # The first takes a quarter of a second, and writing it down again would each time cost what ten requests do.
        return Response(await asyncio.to_thread(written), media_type="application/json")


def _describe_parameters(components: dict[str, Any], methods: Collection[str]) -> None:
    """Say which parameters a request may set of each pruning method: the checks of the body take any name."""
    from covervlm.pruners import pruner_names  # imports torch
    from covervlm.server.selection.parameters import schemas

    described = {f"VisionPruning.{method}": schema for method, schema in schemas(methods or pruner_names()).items()}
    components |= described
    field = components["VisionPruning"]["properties"]["parameters"]
    field["anyOf"] = [*({"$ref": REF.format(model=name)} for name in described), {"type": "null"}]
