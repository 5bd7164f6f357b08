"""`covervlm serve` with one more route, /debug/counts, that tells what cannot be seen from outside the process."""

import asyncio
import gc
import sys
from collections import Counter

from fastapi import FastAPI

from covervlm.server import cli, serving
from covervlm.server.engines.base import Engine
from covervlm.server.settings import Settings

create_app = serving.create_app


def counted(settings: Settings, engine: Engine) -> FastAPI:
    app = create_app(settings, engine)

    @app.get("/debug/counts")
    async def counts() -> dict[str, object]:
        gc.collect()
        kinds = Counter(type(entry).__name__ for entry in gc.get_objects())
        return {"tasks": len(asyncio.all_tasks()), "objects": kinds.total(), "kinds": dict(kinds.most_common(40))}

    return app


if __name__ == "__main__":
    serving.create_app = counted
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
