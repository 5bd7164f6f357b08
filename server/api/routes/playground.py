"""The playground page at / and the API at /docs: static files, examples, and what a page must know of the server."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from covervlm.server.core.engine import Engine
from covervlm.server.demo import example_gallery, example_scenes

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
    """What the page offers: `vision_tokens` is null where it depends on the image; `gallery` is to be labelled."""

    model: str
    methods: list[str]
    method: str
    vision_tokens: int | None
    examples: list[Example]
    gallery: list[str]


def router(engine: Engine, served: str, method: str) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    scenes = example_scenes()
    gallery = {path.name: path for path in example_gallery()}
    pictures = gallery | {scene.path.name: scene.path for scene in scenes}

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
            examples=[Example(url=f"ui/examples/{scene.path.name}", question=scene.question) for scene in scenes],
            gallery=[f"ui/examples/{name}" for name in gallery],
        )

    @routes.get("/ui/examples/{name}")
    async def example(name: str) -> FileResponse:
        if name not in pictures:
            raise HTTPException(404)
        return FileResponse(pictures[name], headers=_HEADERS)

    @routes.get("/ui/{name}")
    async def file(name: str) -> FileResponse:
        if name not in _FILES:
            raise HTTPException(404)
        return FileResponse(_FILES[name], headers=_HEADERS)

    return routes
