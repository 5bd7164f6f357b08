import torch

from covervlm.server.models.base import ImageTokens, Layout, Part
from covervlm.server.selection.feature_cache import FeatureCache


def image(size: int = 8) -> ImageTokens:
    every = torch.arange(size)
    return ImageTokens(Layout(size, (Part(every, every, (1, size)),)), torch.zeros(size, 4), torch.zeros(size, 4))


BYTES = image().nbytes


def test_the_least_recently_used_image_goes_first():
    cache = FeatureCache(2 * BYTES)
    cache.put("a", image())
    cache.put("b", image())
    assert cache.get("a") is not None
    cache.put("c", image())
    assert cache.peek("b") is None
    assert cache.peek("a") is not None
    assert cache.peek("c") is not None


def test_bytes_never_exceed_the_capacity_and_are_exact():
    cache = FeatureCache(5 * BYTES)
    for i in range(40):
        cache.put(str(i % 11), image(size=1 + i % 9))
        assert cache.bytes <= 5 * BYTES
        assert cache.bytes == sum(entry.nbytes for entry in cache._entries.values())


def test_an_image_larger_than_the_cache_is_not_kept_and_evicts_nothing():
    cache = FeatureCache(BYTES)
    cache.put("small", image())
    cache.put("large", image(size=80))
    assert cache.peek("large") is None
    assert cache.peek("small") is not None


def test_hits_and_misses_are_counted_by_get_alone():
    cache = FeatureCache(BYTES)
    cache.put("a", image())
    cache.get("a")
    cache.get("b")
    cache.peek("a")
    assert (cache.hits, cache.misses) == (1, 1)


def test_zero_bytes_turn_the_cache_off():
    cache = FeatureCache(0)
    cache.put("a", image())
    assert cache.get("a") is None
