"""Pictures that this process holds already: a request names them by URLs of its own, and none is encoded for that."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from covervlm.clients.images import is_remote, pil_image
from covervlm.server.core.caller import Caller
from covervlm.server.core.generation import ImagePart
from covervlm.server.media.decoding import Encoded, ImageLimits, open_image
from covervlm.server.media.images import ImageLoader, image_of


class Pictures(ImageLoader):
    """An image loader that knows pictures of this process beside those in URLs."""

    def __init__(self, limits: ImageLimits, **options: Any) -> None:
        super().__init__(limits, **options)
        self._held: dict[str, Any] = {}

    @contextmanager
    def album(self) -> Iterator["Album"]:
        """Where a request puts its pictures, which are forgotten when it ends."""
        album = Album(self._held)
        try:
            yield album
        finally:
            for url in album.urls:
                del self._held[url]

    async def load(self, url: str, *, param: str, caller: Caller) -> ImagePart:
        if url not in self._held:
            return await super().load(url, param=param, caller=caller)
        source = self._held[url]
        return await self.run(lambda: [_opened(source, self.limits)], image_of, 0, param=param, caller=caller)


class Album:
    """The pictures of one request."""

    def __init__(self, held: dict[str, Any]) -> None:
        self._held = held
        self.urls: list[str] = []

    def url(self, source: Any) -> str:
        """Of a path, bytes, PIL image or array, a URL that `Pictures` knows; http(s) and data URLs are their own.

        Raises OSError for a file that cannot be read.
        """
        if is_remote(source) or (isinstance(source, str) and source[:5].lower() == "data:"):
            return source
        if isinstance(source, str | os.PathLike):
            source = Path(source).read_bytes()
        url = f"memory:{uuid.uuid4().hex}"
        self._held[url] = source
        self.urls.append(url)
        return url


def _opened(source: Any, limits: ImageLimits) -> Encoded:
    if isinstance(source, bytes | bytearray | memoryview):
        return open_image(bytes(source), limits)
    # A copy, because decoding closes the image.
    return Encoded(pil_image(source).copy(), limits, scans=1)
