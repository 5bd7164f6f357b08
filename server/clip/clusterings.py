"""Clusterings as jobs: reference words asked for, images encoded, groups found."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

from PIL.Image import Image

from covervlm.server.clip.batched_encoder import BatchedEncoder
from covervlm.server.clip.clustering import ClusteringRequest, cluster
from covervlm.server.clip.jobs import JobError, JobRunner, Reporter, encoding
from covervlm.server.clip.words import UnusableWords
from covervlm.server.engines.base import EngineError
from covervlm.server.store.records import Job

_LOOK_UP = 0.2
"""Seconds after which a job that waits for a language model sees whether it was cancelled."""


class Clusterings:
    """Called on the event loop."""

    def __init__(self, jobs: JobRunner, batched: BatchedEncoder) -> None:
        self._jobs = jobs
        self._batched = batched

    async def start(
        self,
        owner: str,
        images: Sequence[Image],
        ask_words: Callable[[], Coroutine[Any, Any, Sequence[str]]] | None,
        **request: Any,
    ) -> Job:
        """Start a job; `request` is what ClusteringRequest takes, `ask_words` is there if it lacks words."""
        wanted, encoder = ClusteringRequest(**request), self._batched.encoder
        loop = asyncio.get_running_loop()

        def run(report: Reporter) -> dict[str, Any]:
            settled = wanted
            if ask_words is not None:
                report(0.0, phase="asking for reference words")
                settled = replace(wanted, words=_asked(ask_words, loop, report))
            hidden = self._batched.in_batches(encoder.hidden_pixels, images, encoding(report, images))
            result = cluster(
                hidden,
                encoder.visual_projection(),
                settled,
                encoder.prompt_tower,
                lambda share, loss: report(0.5 + share / 2 * 0.98, phase="learning", loss=round(loss, 6)),
                temperature=encoder.temperature,
            )
            result["words_from"] = "request" if ask_words is None else "model"
            report(1.0, phase="done")
            return result

        return await self._jobs.submit(owner, "clustering", lambda _: run)


def _asked(
    words: Callable[[], Coroutine[Any, Any, Sequence[str]]], loop: asyncio.AbstractEventLoop, report: Reporter
) -> tuple[str, ...]:
    """In a job's thread: reference words from a language model. Raises JobError, or Cancelled before it answered."""
    advice = "give 'words' in the request"
    answer = asyncio.run_coroutine_threadsafe(words(), loop)
    try:
        while not wait([answer], timeout=_LOOK_UP).done:
            report.check()
        return tuple(answer.result())
    except UnusableWords as error:
        raise JobError("unusable_words", f"The model's list of words cannot be used: {error}; {advice}.") from None
    except EngineError as error:
        raise JobError("no_words", f"The model could not be asked for words: {error} You can {advice}.") from None
    finally:
        answer.cancel()
