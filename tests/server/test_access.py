"""Keys by their hashes, limits by a clock that the test turns."""

import hashlib

import pytest

from covervlm.server.access import CallerLimits, Callers, Keys, RateLimited, cache_digest, configured, read_key_file
from covervlm.server.settings import Settings, SettingsError
from covervlm.server.store.records import ANONYMOUS


def sha(key):
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def clock():
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


def test_a_key_has_an_owner_that_stays_and_says_nothing_of_the_key():
    keys = Keys([sha("one"), sha("two")])
    owner = keys.owner("one")
    assert owner == Keys([sha("one")]).owner("one")
    assert owner != keys.owner("two")
    assert owner not in (ANONYMOUS, "one")
    assert owner not in sha("one")


@pytest.mark.parametrize("key", ["", "three", "one ", "ONE", sha("one"), "\udcff", "é"])
def test_other_keys_and_the_hashes_themselves_have_none(key):
    assert Keys([sha("one"), sha("two")]).owner(key) is None


def test_settings_keep_hashes_only():
    settings = Settings(api_key=("plain-secret", sha("other")))
    assert settings.api_key == (sha("plain-secret"), sha("other"))
    assert "plain-secret" not in repr(settings) + settings.model_dump_json()


def test_a_file_of_keys_holds_hashes_and_comments(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# team keys\n\n{sha('one')} alice\n  {sha('two')}\n")
    assert read_key_file(file) == [sha("one"), sha("two")]
    assert Settings(api_keys_file=file, api_key="three").key_hashes == (sha("three"), sha("one"), sha("two"))


@pytest.mark.parametrize("text", ["plain-secret\n", "sha256:abc\n", f"alice {sha('one')}\n"])
def test_a_plain_key_in_the_file_is_a_mistake_that_is_not_repeated(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(SettingsError, match="line 1") as mistake:
        _ = Settings(api_keys_file=file).key_hashes
    assert "plain-secret" not in str(mistake.value)
    with pytest.raises(SettingsError, match="No such file"):
        _ = Settings(api_keys_file=tmp_path / "missing").key_hashes


def test_requests_per_minute_refill_evenly(clock):
    caller = Callers(CallerLimits(requests_per_minute=3), clock)["a"]

    def send():
        with caller.request():
            pass

    for _ in range(3):
        send()
    with pytest.raises(RateLimited) as limited:
        send()
    assert limited.value.retry_after == pytest.approx(20)
    clock.now += 19
    with pytest.raises(RateLimited) as limited:
        send()
    assert limited.value.retry_after == pytest.approx(1)
    clock.now += 1.001
    send()
    clock.now += 10_000
    for _ in range(3):
        send()
    with pytest.raises(RateLimited):
        send()


def test_concurrent_requests_are_counted_until_they_end(clock):
    caller = Callers(CallerLimits(concurrent_requests=2), clock)["a"]
    with caller.request():
        with pytest.raises(ZeroDivisionError), caller.request():
            raise ZeroDivisionError
        with caller.request(), pytest.raises(RateLimited), caller.request():
            pass
    with caller.request(), caller.request():
        pass


def test_each_caller_has_limits_of_its_own(clock):
    callers = Callers(CallerLimits(requests_per_minute=1), clock)
    for name in "ab":
        with callers[name].request():
            pass
        with pytest.raises(RateLimited), callers[name].request():
            pass


def test_caches_are_apart_by_owner_and_shared_without_keys():
    assert cache_digest(ANONYMOUS, "d") == "d"
    assert len({cache_digest("a", "d"), cache_digest("b", "d"), cache_digest("a", "e"), "d"}) == 4
    assert cache_digest("a", "d") == cache_digest("a", "d")


def test_a_hash_may_stand_for_a_key_in_the_settings():
    assert configured(sha("one")) == configured("one") == sha("one")
