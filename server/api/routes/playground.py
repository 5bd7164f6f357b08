"""The playground page at / and the API at /docs: static files, examples, and what a page must know of the server."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from covervlm.server.core.engine import Engine
from covervlm.server.demo import example_scenes

_UI = Path(__file__).resolve().parents[2] / "ui"
_SWAGGER = Path(str(files("fastapi_swagger"))) / "resources"
_FILES = {
    path.name: path
    for path in (*_UI.iterdir(), _SWAGGER / "swagger-ui-bundle.js", _SWAGGER / "swagger-ui.css")
    if path.suffix in (".css", ".js", ".svg")
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Example(BaseModel):
    url: str
    question: str


class PlaygroundConfig(BaseModel):
    """What the page offers: `vision_tokens` is null where it depends on the image."""

    model: str
    methods: list[str]
    method: str
    vision_tokens: int | None
    examples: list[Example]


def router(engine: Engine, served: str, method: str) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    scenes = {scene.path.name: scene for scene in example_scenes()}

    @routes.get("/")
    async def page() -> FileResponse:
        return FileResponse(_UI / "index.html", headers=_HEADERS)

    @routes.get("/docs")
    async def docs() -> FileResponse:
        return FileResponse(_UI / "docs.html", headers=_HEADERS)

    @routes.get("/ui/config.json")
    async def config() -> PlaygroundConfig:
        return PlaygroundConfig(
            model=served,
            methods=[method for method in engine.info.methods if method != "none"],
            method=method,
            vision_tokens=engine.info.vision_tokens,
            examples=[Example(url=f"ui/examples/{name}", question=scene.question) for name, scene in scenes.items()],
        )

    @routes.get("/ui/examples/{name}")
    async def example(name: str) -> FileResponse:
        if name not in scenes:
            raise HTTPException(404)
        return FileResponse(scenes[name].path, headers=_HEADERS)

    @routes.get("/ui/{name}")
    async def file(name: str) -> FileResponse:
        if name not in _FILES:
            raise HTTPException(404)
        return FileResponse(_FILES[name], headers=_HEADERS)

    return routes
