"""Image parts of a request to checked RGB images, wherever they come from, within limits on bytes and pixels."""

import asyncio
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import EngineOverloaded, InvalidRequest
from covervlm.server.core.fairness import FairTurns
from covervlm.server.core.generation import ImagePart
from covervlm.server.core.tasks import in_thread
from covervlm.server.media.data_urls import media_bytes, url_scheme
from covervlm.server.media.decoding import BYTES_PER_PIXEL, Encoded, ImageLimits, open_image
from covervlm.server.media.fetch import Fetcher
from covervlm.server.media.files import read_media_file
from covervlm.server.media.kinds import IMAGE, Kind


class Measured(Protocol):
    """A picture that is not decoded yet; decoding_bytes: memory that decoding takes beside its pixels."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def decoding_bytes(self) -> int: ...


Opened = TypeVar("Opened", bound=Measured)
Part = TypeVar("Part")
CheckSize = Callable[[int, int], None]
"""Raises InvalidRequest for an image of this width and height that is not to be decoded."""


class ImageLoader:
    """Decodes images in a few threads of its own, so that neither the event loop nor memory suffers from a rush.

    Callers take turns, image by image; a caller with a key always leaves one thread to the others.

    fetch: gets images behind http(s) URLs. folder: where images at file URLs may lie. Without them, these are refused.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        threads: int,
        max_pending: int,
        fetch: Fetcher | None = None,
        folder: Path | None = None,
    ) -> None:
        self.limits = limits
        self._fetch = fetch
        self._folder = folder
        self._max_pending = max_pending
        self._turns = FairTurns(threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="media")
        self._check_size: CheckSize = _any_size

    def within(self, check_size: CheckSize) -> "ImageLoader":
        """The same loader, with the same threads, for a model whose `check_size` may refuse images."""
        loader = copy.copy(self)
        loader._check_size = check_size
        return loader

    async def load(self, url: str, *, param: str, caller: Caller) -> ImagePart:
        """The image of an `image_url` part; `param` is the part's place in the request, for the error.

        Raises InvalidRequest for an image that is not acceptable, RateLimited where the caller has sent too many, and
        EngineOverloaded where too many images wait or no memory is left for this one.
        """
        caller.charge_image()
        if delay := caller.pace.images():
            await asyncio.sleep(delay)
        with caller.holding() as hold:
            try:
                read, size = await self.source(url, self.limits.max_bytes, IMAGE, caller, hold)
            except InvalidRequest as error:
                error.param = param
                raise
            return await self.run(lambda: [open_image(read(), self.limits)], image_of, size, param=param, caller=caller)

    async def source(
        self, url: str, most: int, kind: Kind, caller: Caller, hold: Callable[[int], None]
    ) -> tuple[Callable[[], bytes], int]:
        """What reads the encoded file of `most` bytes, and the bytes that this takes.

        `hold` is told of what is there before. Raises InvalidRequest.
        """
        scheme = url_scheme(url)
        if scheme in ("http", "https") and self._fetch is not None:
            data = await self._fetch(url.strip(), most, owner=caller.owner, hold=hold, pace=caller.pace, kind=kind)
            return lambda: data, 0
        if scheme == "file" and self._folder is not None:
            return partial(read_media_file, url.strip(), self._folder, most, kind), most
        # A data URL's bytes in pieces, and those joined.
        return partial(media_bytes, url, most, kind), 2 * len(url)

    async def run(
        self,
        read: Callable[[], Sequence[Opened]],
        decode: Callable[[Sequence[Opened]], Part],
        size: int,
        *,
        param: str,
        caller: Caller,
        stop: Callable[[], None] = lambda: None,
    ) -> Part:
        """What `decode` makes of what `read` has opened, both in one of the threads; raises as `load` does.

        size: bytes that reading takes. stop: ends either early, once the caller has left. The pixels' memory is
        counted once the headers tell how many, before decoding.
        """
        if len(self._turns) >= self._max_pending:
            raise EngineOverloaded("Too many images are waiting to be decoded; try again shortly.", retry_after=1)
        try:
            async with self._turns.turn(caller.owner, leaves=int(caller.has_key)):
                with caller.holding(size):
                    encoded = await in_thread(self._pool, read, stop=stop)
                    for image in encoded:
                        self._check_size(image.width, image.height)
                    caller.hold(BYTES_PER_PIXEL * sum(image.width * image.height for image in encoded))
                    with caller.holding(max(image.decoding_bytes for image in encoded)):
                        return await in_thread(self._pool, decode, encoded, stop=stop)
        except InvalidRequest as error:
            error.param = param
            raise

    async def close(self) -> None:
        """Drop images that still wait; running threads end on their own."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._fetch is not None:
            await self._fetch.aclose()


def image_of(encoded: Sequence[Encoded]) -> ImagePart:
    """The only image of a part, decoded. Raises InvalidRequest."""
    (image,) = encoded
    return image.part()


def _any_size(width: int, height: int) -> None:
    pass
