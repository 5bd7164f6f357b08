"""The encoder for many callers at once: inputs prepared in threads, batched across requests, on one model thread."""

import asyncio
import functools
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.encoder.encoder import ClipEncoder, ForeignTokens, TextTooLong
from covervlm.server.clip.encoder.micro_batcher import MicroBatcher
from covervlm.server.clip.encoder.patches import patch_rows
from covervlm.server.clip.encoder.templates import check_class_names, check_templates, prompts
from covervlm.server.core.caller import ANONYMOUS, Caller
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.fairness import FairTurns
from covervlm.server.core.tasks import all_or_none, in_thread
from covervlm.server.jobs.runner import Reporter

_CACHED_CLASS_LISTS = 16
_TEXTS_AT_ONCE = 64
_IMAGES_AT_ONCE = 16
_MOST_PROMPTS = 100_000
_MOST_CHARACTERS = 16_000_000
_JOB_BATCH = 16


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors as little-endian float32 bytes, one per input, and the tokens that the texts took."""

    vectors: list[bytes]
    tokens: int


class BatchedEncoder:
    """Called on the event loop, except `in_batches`. Only the model's own thread runs the model."""

    def __init__(
        self,
        encoder: ClipEncoder,
        *,
        max_batch: int | None = None,
        max_waiting: int = 4096,
        preprocess_threads: int = 2,
    ) -> None:
        self.encoder = encoder
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="clip")
        self._turns = FairTurns(preprocess_threads)
        self._preprocess = ThreadPoolExecutor(preprocess_threads, thread_name_prefix="clip-preprocess")
        # A CPU is as busy with four; with more, whoever comes next would wait longer for nothing.
        on_cpu = encoder.device.type == "cpu"
        most = max_batch or (4 if on_cpu else 16)
        limits = {"max_batch": most, "max_waiting": max_waiting}
        self._pixels = MicroBatcher[Tensor, Tensor](
            lambda pixels: list(encoder.embed_pixels(pixels)),
            self._model_thread,
            **limits,
            max_each=1 if on_cpu else None,
        )
        self._texts = MicroBatcher[list[int], Tensor](
            lambda ids: list(encoder.embed_ids(ids)), self._model_thread, **limits
        )
        self._proxies: OrderedDict[tuple[str, tuple[str, ...], tuple[str, ...]], Tensor] = OrderedDict()

    def close(self) -> None:
        self._model_thread.shutdown(wait=True)
        self._preprocess.shutdown(wait=True)

    async def embed(
        self,
        caller: Caller,
        inputs: Mapping[str, str | list[int] | Image],
        *,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> Embeddings:
        """Texts, token ids and images by their places in the request, in order. Raises InvalidRequest, naming one.

        project: from vectors (n, d) to those that are answered.
        """
        texts = {place: item for place, item in inputs.items() if isinstance(item, str | list)}
        images = {place: item for place, item in inputs.items() if not isinstance(item, str | list)}
        text_rows, tokens = await self.texts(list(texts.values()), owner=caller.owner, param=list(texts).__getitem__)
        image_rows = await self.images(list(images.values()), caller=caller)
        rows: dict[str, Tensor] = dict(zip(texts, text_rows, strict=True))
        rows |= dict(zip(images, image_rows, strict=True))
        vectors: Iterable[Tensor] = (rows[place] for place in inputs)
        if project is not None:
            vectors = await asyncio.to_thread(project, torch.stack(list(vectors)))
        return Embeddings([vector.numpy().astype("<f4").tobytes() for vector in vectors], tokens)

    async def images(self, images: Sequence[Image], *, caller: Caller) -> list[Tensor]:
        """A unit vector (d,) of each image. Raises EngineOverloaded where there is no memory for the pixels."""
        rows: list[Tensor] = []
        # A few at a time, since their pixels, which are counted, may take a thousand times the memory of an image.
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            part = images[start : start + _IMAGES_AT_ONCE]
            with caller.holding(sum(self.encoder.cost(*image.size).kept for image in part)):
                pixels = await all_or_none(self._preprocessed(image, caller) for image in part)
                rows += await self._pixels(pixels, owner=caller.owner)
                del pixels
        return rows

    async def patches(self, image: Image, *, caller: Caller) -> tuple[Tensor, tuple[int, int]] | None:
        """(rows * columns, d) unit vectors of an image's patches and (rows, columns), or None: see `patch_rows`."""
        pixels = await self._preprocessed(image, caller)
        work = functools.partial(patch_rows, self.encoder.model, pixels)
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, work)

    async def _preprocessed(self, image: Image, caller: Caller) -> Tensor:
        async with self._turns.turn(caller.owner, leaves=int(caller.has_key)):
            with caller.holding(self.encoder.cost(*image.size).work):
                return await in_thread(self._preprocess, self.encoder.preprocess, image)

    async def texts(
        self, texts: Sequence[str | list[int]], *, owner: str, param: Callable[[int], str]
    ) -> tuple[list[Tensor], int]:
        """A unit vector (d,) of each text or its token ids, and the number of tokens of all.

        Raises InvalidRequest, naming `param(i)`, where text i is too long or ids are not the model's.
        """
        rows: list[Tensor] = []
        tokens = 0
        async for part, more in self._rows(texts, owner, param):
            rows += part
            tokens += more
        return rows, tokens

    async def _rows(
        self, texts: Sequence[str | list[int]], owner: str, param: Callable[[int], str]
    ) -> AsyncIterator[tuple[list[Tensor], int]]:
        """Unit vectors (d,) and the number of their tokens, some at a time; raises as `texts` does.

        A part is tokenised when the one before it is done: ids of a hundred thousand texts never lie in memory, others
        have room between the parts, and a thread beside them.
        """
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = list(texts[start : start + _TEXTS_AT_ONCE])
            try:
                async with self._turns.turn(owner, leaves=int(owner != ANONYMOUS)):
                    ids = await in_thread(self._preprocess, self.encoder.tokenize, part)
            except TextTooLong as error:
                raise _invalid(error, param(start + error.index), code="context_length_exceeded") from None
            except ForeignTokens as error:
                raise _invalid(error, param(start + error.index)) from None
            yield await self._texts(ids, owner=owner), sum(map(len, ids))

    async def class_proxies(self, owner: str, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(d, K) text proxies, from a small cache in which each owner finds only what was put there for it: how long
        an answer takes must not tell which classes others use. Raises InvalidRequest for names that make no classifier.
        """
        key = (owner, tuple(names), tuple(templates))
        if key not in self._proxies:
            sentences = await asyncio.to_thread(_prompts, names, templates, self.encoder.most_characters)
            of_class = self._rows(sentences, owner, lambda i: f"classes[{i // len(templates)}]")
            # A tensor of its own for each of a hundred thousand would take a kilobyte.
            rows = torch.cat([torch.stack(part) async for part, _ in of_class])
            self._proxies[key] = await asyncio.to_thread(_means, rows, len(templates))
            while len(self._proxies) > _CACHED_CLASS_LISTS:
                self._proxies.popitem(last=False)
        self._proxies.move_to_end(key)
        return self._proxies[key]

    def in_batches(
        self,
        encode: Callable[[Sequence[Tensor]], Tensor],
        images: Sequence[Image],
        report: Reporter,
    ) -> Tensor:
        """In a job's thread: encode images between other callers' batches, and report this as half of the job."""
        parts = []
        for start in range(0, len(images), _JOB_BATCH):
            report(0.5 * start / len(images), phase="encoding", images=start)
            pixels = [self.encoder.preprocess(image) for image in images[start : start + _JOB_BATCH]]
            parts.append(self._model_thread.submit(functools.partial(encode, pixels)).result())
        return torch.cat(parts)


def image_bytes(images: Sequence[Image]) -> int:
    """The memory that RGB images take."""
    return sum(3 * image.width * image.height for image in images)


def _prompts(names: Sequence[str], templates: Sequence[str], longest: int) -> list[str]:
    """In a thread. Raises InvalidRequest, also for names and templates of more characters than a prompt may have."""
    for param, texts in (("classes", names), ("templates", templates)):
        for i, text in enumerate(texts):
            if len(text) > longest:
                message = f"The text has {len(text)} characters, more than this model can read; it may have {longest}."
                raise InvalidRequest(message, param=f"{param}[{i}]", code="context_length_exceeded")
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
    if len(templates) * sum(map(len, names)) + len(names) * sum(map(len, templates)) > _MOST_CHARACTERS:
        message = f"All classes in all templates may have {_MOST_CHARACTERS} characters at most; send fewer or shorter."
        raise InvalidRequest(message, param="templates", code="invalid_value")
    return prompts(names, templates)


def _means(rows: Tensor, templates: int) -> Tensor:
    """(d, K) unit columns out of rows (K * templates, d): the mean over each class's templates. In a thread."""
    return normalize(rows.unflatten(0, (-1, templates)).mean(dim=1), dim=1).T.contiguous()


def _invalid(error: Exception, param: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"{str(error)[:1].upper()}{str(error)[1:]}.", param=param, code=code)
