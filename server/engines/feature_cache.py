"""Tower outputs of recent images by content hash, bounded in bytes."""

import logging
import threading
from collections import OrderedDict

from covervlm.server.models.base import ImageTokens

log = logging.getLogger(__name__)


class FeatureCache:
    """Least recently used images go first. Safe to use from several threads; 0 bytes turns it off."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._entries: OrderedDict[str, ImageTokens] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, key: str) -> ImageTokens | None:
        """The image's tokens, counted as a hit or a miss. An entry that memory has spoilt is a miss, and forgotten."""
        with self._lock:
            entry = self._entries.get(key)
        intact = entry is not None and entry.intact
        with self._lock:
            if intact:
                self.hits += 1
                if key in self._entries:
                    self._entries.move_to_end(key)
                return entry
            self.misses += 1
            if entry is not None and self._entries.get(key) is entry:
                log.warning("a cached image is not what was put into the cache; it is encoded again")
                self.bytes -= self._entries.pop(key).nbytes
            return None

    def peek(self, key: str) -> ImageTokens | None:
        """The image's tokens without counting or touching: for a second look at what was already asked for."""
        with self._lock:
            return self._entries.get(key)

    def put(self, key: str, image: ImageTokens) -> None:
        """Remember an image, unless it alone is larger than the cache."""
        if image.nbytes > self._capacity:
            return
        with self._lock:
            if key in self._entries:
                self.bytes -= self._entries.pop(key).nbytes
            self._entries[key] = image
            self.bytes += image.nbytes
            while self.bytes > self._capacity:
                _, dropped = self._entries.popitem(last=False)
                self.bytes -= dropped.nbytes
