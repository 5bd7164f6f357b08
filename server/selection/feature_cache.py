"""Tower outputs of recent images by content hash, bounded in bytes."""

import logging
import threading

from cachetools import Cache, LRUCache

from covervlm.server.models.base import ImageTokens

log = logging.getLogger(__name__)


class FeatureCache:
    """Least recently used images go first. Safe to use from several threads; 0 bytes turns it off."""

    def __init__(self, capacity_bytes: int) -> None:
        self._entries: LRUCache[str, ImageTokens] = LRUCache(capacity_bytes, getsizeof=lambda image: image.nbytes)
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    @property
    def bytes(self) -> int:
        return int(self._entries.currsize)

    def get(self, key: str) -> ImageTokens | None:
        """The image's tokens, counted as a hit or a miss. An entry corrupted in memory is a miss, and dropped."""
        with self._lock:
            entry = self._entries.get(key)
        intact = entry is not None and entry.intact
        with self._lock:
            self.hits += intact
            self.misses += not intact
            if entry is not None and not intact and self._entries.pop(key, None) is not None:
                log.warning("cached features of an image are damaged (rows lost, NaN or infinity); it is encoded again")
        return entry if intact else None

    def peek(self, key: str) -> ImageTokens | None:
        """The same without counting or checking, for an entry that `get` was asked for before."""
        with self._lock:
            return self._entries.get(key)

    def look(self, key: str) -> ImageTokens | None:
        """An intact entry, without a trace: it is not counted, and is thrown out as soon as if nobody had looked."""
        with self._lock:
            entry = Cache.__getitem__(self._entries, key) if key in self._entries else None
        return entry if entry is not None and entry.intact else None

    def put(self, key: str, image: ImageTokens) -> None:
        """Remember an image, unless it alone is larger than the cache."""
        if self.fits(image):
            with self._lock:
                self._entries[key] = image

    def fits(self, image: ImageTokens) -> bool:
        """Whether an image would be remembered."""
        return image.nbytes <= self._entries.maxsize


class UntouchedCache(FeatureCache):
    """Another cache as it is seen by work that must leave no trace in it: nothing is counted, moved or remembered."""

    def __init__(self, source: FeatureCache) -> None:
        super().__init__(0)
        self._source = source

    def get(self, key: str) -> ImageTokens | None:
        return self._source.look(key)

    def peek(self, key: str) -> ImageTokens | None:
        return self._source.look(key)

    def put(self, key: str, image: ImageTokens) -> None:
        pass
