"""The encoder for many callers at once: inputs prepared in threads, batched across requests, on one model thread."""

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.batching import MicroBatcher
from covervlm.server.clip.encoder import ClipEncoder, TextTooLong
from covervlm.server.clip.templates import check_class_names, check_templates, prompts
from covervlm.server.engines.base import InvalidRequest

_CACHED_CLASS_LISTS = 16
_TEXTS_AT_ONCE = 64
_MOST_PROMPTS = 100_000
_JOB_BATCH = 16


class BatchedEncoder:
    """Called on the event loop, but for `in_batches`. The model's thread is the only one to run the model."""

    def __init__(
        self, encoder: ClipEncoder, *, max_batch: int = 16, max_waiting: int = 4096, preprocess_threads: int = 2
    ) -> None:
        self.encoder = encoder
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="clip")
        self._preprocess = ThreadPoolExecutor(preprocess_threads, thread_name_prefix="clip-preprocess")
        limits = {"max_batch": max_batch, "max_waiting": max_waiting}
        self._pixels = MicroBatcher[Tensor, Tensor](
            lambda pixels: list(encoder.embed_pixels(pixels)), self._model_thread, **limits
        )
        self._texts = MicroBatcher[list[int], Tensor](
            lambda ids: list(encoder.embed_ids(ids)), self._model_thread, **limits
        )
        self._proxies: OrderedDict[tuple[str, tuple[str, ...], tuple[str, ...]], Tensor] = OrderedDict()

    def close(self) -> None:
        self._model_thread.shutdown(wait=True)
        self._preprocess.shutdown(wait=True)

    async def images(self, images: Sequence[Image]) -> list[Tensor]:
        """A unit vector (d,) of each image."""
        loop = asyncio.get_running_loop()
        preprocess = self.encoder.preprocess
        tasks = [loop.run_in_executor(self._preprocess, preprocess, image) for image in images]
        return await self._pixels(await asyncio.gather(*tasks))

    async def texts(self, texts: Sequence[str], *, param: Callable[[int], str]) -> tuple[list[Tensor], int]:
        """A unit vector (d,) of each text, and the number of tokens of all.

        Raises InvalidRequest, naming `param(i)`, where text i is too long.
        """
        if not texts:
            return [], 0
        loop = asyncio.get_running_loop()
        try:
            ids = await loop.run_in_executor(self._preprocess, self.encoder.tokenize, list(texts))
        except TextTooLong as error:
            raise _invalid(error, param(error.index), code="context_length_exceeded") from None
        rows: list[Tensor] = []
        # A long list leaves room for others between its parts.
        for start in range(0, len(ids), _TEXTS_AT_ONCE):
            rows += await self._texts(ids[start : start + _TEXTS_AT_ONCE])
        return rows, sum(len(tokens) for tokens in ids)

    async def class_proxies(self, owner: str, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(d, K) text proxies, from a small cache in which each owner finds only what was put there for it: how long
        an answer takes must not tell which classes others use. Raises InvalidRequest for names that make no classifier.
        """
        try:
            check_class_names(names)
        except ValueError as error:
            raise _invalid(error, "classes") from None
        try:
            check_templates(templates)
        except ValueError as error:
            raise _invalid(error, "templates") from None
        if len(names) * len(templates) > _MOST_PROMPTS:
            message = f"Classes times templates may be {_MOST_PROMPTS} at most."
            raise InvalidRequest(message, param="templates", code="invalid_value")
        key = (owner, tuple(names), tuple(templates))
        if key not in self._proxies:
            rows, _ = await self.texts(prompts(names, templates), param=lambda i: f"classes[{i // len(templates)}]")
            means = torch.stack(rows).unflatten(0, (len(names), len(templates))).mean(dim=1)
            self._proxies[key] = normalize(means, dim=1).T.contiguous()
            while len(self._proxies) > _CACHED_CLASS_LISTS:
                self._proxies.popitem(last=False)
        self._proxies.move_to_end(key)
        return self._proxies[key]

    def in_batches(
        self,
        encode: Callable[[Sequence[Tensor]], Tensor],
        images: Sequence[Image],
        progress: Callable[[int], None],
    ) -> Tensor:
        """In a job's thread: encode images between other callers' batches; `progress` is told how many are done."""
        parts = []
        for start in range(0, len(images), _JOB_BATCH):
            progress(start)
            pixels = [self.encoder.preprocess(image) for image in images[start : start + _JOB_BATCH]]
            parts.append(self._model_thread.submit(functools.partial(encode, pixels)).result())
        return torch.cat(parts)


def _invalid(error: Exception, param: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"{str(error)[:1].upper()}{str(error)[1:]}.", param=param, code=code)
