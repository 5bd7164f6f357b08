"""Ask a running server, a bounded number of questions at a time, as `covervlm tune` does."""

import base64
import io
from collections.abc import Iterator, Sequence

from covervlm.clients import Client
from covervlm.server.cli.asking import ask, at_once
from covervlm.server.tuning.trial import same
from evaluation.in_process import question_seed
from evaluation.question_sets import Item, scene_of
from evaluation.records import UNPRUNED, Cell
from evaluation.variants import PARAMETERS

MAX_TOKENS = 16


def data_url(item: Item) -> str:
    """The item's scene as a PNG, which keeps every pixel."""
    buffer = io.BytesIO()
    scene_of(item.set, item.seed).image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class OverHTTP:
    """The benchmark's questions asked of a server at `url`, greedily. model: by default the first that it lists."""

    def __init__(self, url: str, model: str | None, api_key: str, concurrency: int) -> None:
        self.client = Client(url, model=model, api_key=api_key)
        self.concurrency = concurrency

    def answer(self, item: Item, cell: Cell) -> str:
        """The server's answer to one question, without blanks at its ends."""
        method, parameters = PARAMETERS.get(cell.method, (cell.method, None))
        pruned = None if cell.method == UNPRUNED else Cell(method, cell.keep)
        options = {"max_tokens": MAX_TOKENS, "seed": question_seed(item), "parameters": parameters}
        return ask(self.client, data_url(item), item.question, pruned, **options).text

    def ask(self, wanted: Sequence[tuple[Item, Sequence[Cell]]]) -> Iterator[tuple[str, Cell, bool, str | None]]:
        """Yield (question key, cell, correct, answer) as the answers arrive."""
        jobs = [(item, cell) for item, cells in wanted for cell in cells]
        for (item, cell), answer in at_once(lambda job: self.answer(*job), jobs, self.concurrency):
            text = answer.result()
            yield item.key, cell, same(text, item.answer), text
