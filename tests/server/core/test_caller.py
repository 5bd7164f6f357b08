"""Keys by their hashes, limits by a clock that the test turns."""

import hashlib

import pytest

from covervlm.server.core.caller import ANONYMOUS, Caller, CallerLimits, Callers
from covervlm.server.core.errors import RateLimited
from covervlm.server.limits.keys import Keys, configured, read_key_file
from covervlm.server.settings import Settings, SettingsError


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
    callers = Callers(CallerLimits(requests_per_minute=3), clock=clock)

    def send():
        with callers.request("a"):
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
    callers = Callers(CallerLimits(concurrent_requests=2), clock=clock)
    with callers.request("a"):
        with pytest.raises(ZeroDivisionError), callers.request("a"):
            raise ZeroDivisionError
        with callers.request("a"), pytest.raises(RateLimited), callers.request("a"):
            pass
    with callers.request("a"), callers.request("a"):
        pass


def test_each_caller_has_limits_of_its_own(clock):
    callers = Callers(CallerLimits(requests_per_minute=1), clock=clock)
    for name in "ab":
        with callers.request(name):
            pass
        with pytest.raises(RateLimited), callers.request(name):
            pass


def test_caches_are_apart_by_owner_and_shared_without_keys():
    a, b = Caller("a"), Caller("b")
    assert Caller().cache_digest("d") == Caller(ANONYMOUS).cache_digest("d") == "d"
    assert len({a.cache_digest("d"), b.cache_digest("d"), a.cache_digest("e"), "d"}) == 4
    assert a.cache_digest("d") == Caller("a").cache_digest("d")


def test_a_hash_may_stand_for_a_key_in_the_settings():
    assert configured(sha("one")) == configured("one") == sha("one")
