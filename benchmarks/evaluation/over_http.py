"""Ask a running server through the `openai` client, a bounded number of questions at a time."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Sequence

from openai import AsyncOpenAI

from evaluation.in_process import question_seed
from evaluation.question_sets import Item, scene_of
from evaluation.records import UNPRUNED, Cell

MAX_TOKENS = 16


def data_url(item: Item) -> str:
    """The item's scene as a PNG, which keeps every pixel."""
    buffer = io.BytesIO()
    scene_of(item.set, item.seed).image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class OverHTTP:
    """The benchmark's questions asked of a server at `url`, greedily."""

    def __init__(self, url: str, model: str | None, api_key: str, concurrency: int) -> None:
        base = url.rstrip("/")
        self.client = AsyncOpenAI(base_url=base if base.endswith("/v1") else base + "/v1", api_key=api_key)
        self.model = model
        self.concurrency = concurrency

    async def model_name(self) -> str:
        """The model asked for, or the first that the server lists."""
        if self.model is None:
            self.model = (await self.client.models.list()).data[0].id
        return self.model

    async def answer(self, item: Item, cell: Cell) -> str:
        """The server's answer to one question, without blanks at its ends."""
        pruning: dict[str, object] = {"method": cell.method}
        if cell.method != UNPRUNED:
            pruning["keep_tokens"] = cell.keep
        image = await asyncio.to_thread(data_url, item)
        completion = await self.client.chat.completions.create(
            model=await self.model_name(),
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": image}},
                        {"type": "text", "text": item.question},
                    ],
                }
            ],
            temperature=0,
            max_tokens=MAX_TOKENS,
            seed=question_seed(item),
            extra_body={"vision_pruning": pruning},
        )
        return (completion.choices[0].message.content or "").strip()

    async def ask(
        self, wanted: Sequence[tuple[Item, Sequence[Cell]]]
    ) -> AsyncIterator[tuple[str, Cell, bool, str | None]]:
        """Yield (question key, cell, correct, answer) as the answers arrive."""
        jobs = iter([(item, cell) for item, cells in wanted for cell in cells])
        running: set[asyncio.Task[tuple[str, Cell, bool, str | None]]] = set()

        async def one(item: Item, cell: Cell) -> tuple[str, Cell, bool, str | None]:
            text = await self.answer(item, cell)
            return item.key, cell, text.lower() == item.answer, text

        try:
            while True:
                while len(running) < self.concurrency and (job := next(jobs, None)) is not None:
                    running.add(asyncio.create_task(one(*job)))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()
