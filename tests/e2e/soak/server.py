"""`covervlm serve` with one more route, /debug/counts, that tells what cannot be seen from outside the process."""

import asyncio
import gc
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import anyio.to_thread

from covervlm.server import cli, serving
from covervlm.server.app import Application
from tests.e2e.attack.lifeline import end_with_parent


class Counted(Application):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.app.get("/debug/counts")(self.counts)

    async def counts(self) -> dict[str, object]:
        gc.unfreeze()
        gc.collect()
        entries = gc.get_objects()
        gc.freeze()
        kinds = Counter(type(entry).__name__ for entry in entries)
        pools = [entry for entry in entries if type(entry) is ThreadPoolExecutor]
        framework = sum(thread.name == "AnyIO worker thread" for thread in threading.enumerate())
        framework_may = int(anyio.to_thread.current_default_thread_limiter().total_tokens)
        return {
            "tasks": len(asyncio.all_tasks()),
            "objects": kinds.total(),
            "kinds": dict(kinds.most_common(40)),
            "threads_to_come": framework_may - framework + sum(p._max_workers - len(p._threads) for p in pools),
        }


if __name__ == "__main__":
    end_with_parent()
    serving.Application = Counted
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
