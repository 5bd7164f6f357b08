"""Sessions in memory and store: exactly once, one at a time, side by side, and after a crash at the last snapshot."""

import asyncio
import json
import threading

import pytest
import torch
from torch.nn.functional import normalize

from covervlm.server.clip import live_session
from covervlm.server.clip import sessions as module
from covervlm.server.clip.methods.coke import CoKe
from covervlm.server.clip.methods.onzeta import OnlineZeroShot
from covervlm.server.clip.sessions import Sessions, SnapshotInterval
from covervlm.server.core.errors import Conflict, NotFound
from covervlm.server.store import Store
from covervlm.server.store.database import Database

TEXT = normalize(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), dim=0)
IMAGES = normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(1)), dim=1)
ABOUT = {"classes": ["a", "b", "c"], "horizon": 20, "parameters": {}, "fingerprint": "f"}
NEVER = SnapshotInterval(images=10**9, seconds=10**6)


def render(predictions) -> dict:
    return {"data": [[p.index, *p.combined.tolist()] for p in predictions]}


@pytest.fixture
def expected() -> list[list[float]]:
    stream = OnlineZeroShot(TEXT, 20)
    return [render([stream.observe(image)])["data"][0] for image in IMAGES]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def start(folder, interval: SnapshotInterval = NEVER, **options) -> tuple[Store, Sessions]:
    store = Store(Database(folder))
    return store, Sessions(store, interval, **options)


async def observe(sessions: Sessions, session: str, i: int, key: str | None = None, digest: str = "d") -> list[float]:
    answer = await sessions.observe("me", session, IMAGES[i : i + 1], render, key=key, digest=digest)
    return answer["data"][0]


async def test_after_a_crash_state_and_keys_are_those_of_one_snapshot(folder, expected):
    store, sessions = start(folder, SnapshotInterval(images=4, seconds=10**6))
    session = (await sessions.create("me", ABOUT, TEXT))["id"]
    for i in range(10):
        assert await observe(sessions, session, i, key=f"k{i}") == pytest.approx(expected[i])
    assert (await sessions.describe("me", session))["snapshot_observed"] == 8
    store.close()  # what a killed process leaves: nothing is saved on the way out

    store, sessions = start(folder)
    state = await sessions.describe("me", session)
    assert (state["observed"], state["snapshot_observed"]) == (8, 8)
    for i in range(8):
        assert await observe(sessions, session, 39, key=f"k{i}") == pytest.approx(expected[i])
    for i in range(8, 12):
        assert await observe(sessions, session, i, key=f"k{i}") == pytest.approx(expected[i])
    assert (await sessions.describe("me", session))["observed"] == 12
    await sessions.stop()
    store.close()


async def test_groups_go_on_after_a_crash_as_if_nothing_had_happened(folder):
    plain = CoKe(ratio=0.8).open(TEXT, 20)
    expected = [render([plain.observe(image)])["data"][0] for image in IMAGES[:12]]
    store, sessions = start(folder, SnapshotInterval(images=4, seconds=10**6))
    session = (await sessions.create("me", ABOUT | {"parameters": {"ratio": 0.8}}, TEXT, method="coke"))["id"]
    for i in range(8):
        assert await observe(sessions, session, i) == pytest.approx(expected[i])
    store.close()

    store, sessions = start(folder)
    for i in range(8, 12):
        assert await observe(sessions, session, i) == pytest.approx(expected[i])
    await sessions.stop()
    store.close()


async def test_a_snapshot_follows_the_first_image_by_the_interval(folder):
    store, sessions = start(folder, SnapshotInterval(images=10**9, seconds=0.01))
    session = (await sessions.create("me", ABOUT, TEXT))["id"]
    await observe(sessions, session, 0, key="k")
    while store.find("me", "stream", session).observed != 1:
        await asyncio.sleep(0)
    assert [a.key for a in store.answers(session)] == ["k"]
    await sessions.stop()
    store.close()


async def test_concurrent_repeats_of_one_key_count_once(folder):
    store, sessions = start(folder)
    session = (await sessions.create("me", ABOUT, TEXT))["id"]
    answers = await asyncio.gather(*(observe(sessions, session, 0, key="same") for _ in range(10)))
    assert all(answer == answers[0] for answer in answers)
    assert (await sessions.describe("me", session))["observed"] == 1
    with pytest.raises(Conflict):
        await observe(sessions, session, 0, key="same", digest="other")
    await sessions.stop()
    store.close()


async def test_one_session_is_served_one_call_at_a_time_and_two_sessions_at_once(folder, monkeypatch, expected):
    store, sessions = start(folder, threads=2)
    first, second = [(await sessions.create("me", ABOUT, TEXT))["id"] for _ in range(2)]
    together = threading.Barrier(2, timeout=30)
    plain, busy = module._observe_all, set()

    def watched(stream, features):
        assert stream not in busy
        busy.add(stream)
        together.wait()  # passes only if the other session is observed at the same time
        result = plain(stream, features)
        busy.discard(stream)
        return result

    monkeypatch.setattr(module, "_observe_all", watched)
    calls = [observe(sessions, session, i) for i in range(10) for session in (first, second)]
    answers = await asyncio.gather(*calls)
    assert answers[::2] == answers[1::2]
    assert [answer[0] for answer in answers[::2]] == list(range(10))
    await sessions.stop()
    store.close()


async def test_a_caller_that_goes_away_leaves_a_whole_update_behind(folder, monkeypatch, expected):
    store, sessions = start(folder)
    session = (await sessions.create("me", ABOUT, TEXT))["id"]
    begun, go_on, plain = threading.Event(), threading.Event(), module._observe_all

    def held(stream, features):
        begun.set()
        go_on.wait(30)
        return plain(stream, features)

    monkeypatch.setattr(module, "_observe_all", held)
    call = asyncio.create_task(observe(sessions, session, 0, key="k"))
    await asyncio.to_thread(begun.wait, 30)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go_on.set()
    assert await observe(sessions, session, 39, key="k") == pytest.approx(expected[0])
    assert (await sessions.describe("me", session))["observed"] == 1
    await sessions.stop()
    store.close()


async def test_sessions_dropped_from_memory_come_back_as_they_were(folder, expected):
    store, sessions = start(folder, max_loaded=1)
    names = [(await sessions.create("me", ABOUT, TEXT))["id"] for _ in range(4)]
    for i in range(12):
        answers = await asyncio.gather(*(observe(sessions, name, i, key=str(i)) for name in names))
        for answer in answers:
            assert answer == pytest.approx(expected[i])
    for name in names:
        assert (await sessions.describe("me", name))["observed"] == 12
        assert await observe(sessions, name, 39, key="3") == pytest.approx(expected[3])
    await sessions.stop()
    store.close()


async def test_only_the_newest_keys_are_remembered(folder, monkeypatch):
    monkeypatch.setattr(live_session, "REMEMBERED_KEYS", 5)
    store, sessions = start(folder, SnapshotInterval(images=2, seconds=10**6))
    session = (await sessions.create("me", ABOUT, TEXT))["id"]
    for i in range(12):
        await observe(sessions, session, i, key=str(i))
    assert await sessions.recall("me", session, "6", "d") is None
    assert await sessions.recall("me", session, "7", "d") is not None
    await sessions.stop()
    assert [a.key for a in store.answers(session)] == ["7", "8", "9", "10", "11"]
    store.close()


async def test_remembered_answers_are_bounded_in_size_also_after_a_restart(folder, monkeypatch):
    store, sessions = start(folder)
    session = (await sessions.create("me", ABOUT, TEXT))["id"]
    await observe(sessions, session, 0, key="measure")
    size = len(json.dumps(await sessions.recall("me", session, "measure", "d")))
    monkeypatch.setattr(live_session, "REMEMBERED_BYTES", int(3.5 * size))
    for i in range(1, 6):
        await observe(sessions, session, i, key=str(i))
    assert await sessions.recall("me", session, "5", "d") is not None
    assert await sessions.recall("me", session, "1", "d") is None
    await sessions.stop()
    store.close()
    store, sessions = start(folder)
    assert await sessions.recall("me", session, "5", "d") is not None
    for i in range(6, 9):
        await observe(sessions, session, i, key=str(i))
    assert await sessions.recall("me", session, "5", "d") is None
    monkeypatch.setattr(live_session, "REMEMBERED_BYTES", 1)
    await observe(sessions, session, 9, key="9")
    assert await sessions.recall("me", session, "9", "d") is not None
    await sessions.stop()
    store.close()


async def test_a_snapshot_that_cannot_be_written_costs_no_answer(folder, monkeypatch, expected):
    store, sessions = start(folder, SnapshotInterval(images=1, seconds=10**6))
    session = (await sessions.create("me", ABOUT, TEXT))["id"]
    with monkeypatch.context() as broken:
        broken.setattr(store, "save_state", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        assert await observe(sessions, session, 0, key="k0") == pytest.approx(expected[0])
    assert await observe(sessions, session, 1, key="k1") == pytest.approx(expected[1])
    assert store.find("me", "stream", session).observed == 2
    assert [a.key for a in store.answers(session)] == ["k0", "k1"]
    await sessions.stop()
    store.close()


async def test_a_restore_that_cannot_be_written_changes_nothing(folder, monkeypatch, expected):
    store, sessions = start(folder)
    session = (await sessions.create("me", ABOUT, TEXT))["id"]
    early = await sessions.snapshot("me", session)
    for i in range(3):
        await observe(sessions, session, i, key=f"k{i}")
    with monkeypatch.context() as broken:
        broken.setattr(store, "replace_state", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            await sessions.restore("me", session, early)
    assert (await sessions.describe("me", session))["observed"] == 3
    assert await observe(sessions, session, 39, key="k2") == pytest.approx(expected[2])
    assert await observe(sessions, session, 3) == pytest.approx(expected[3])
    await sessions.stop()
    store.close()


@pytest.mark.parametrize("what", ["snapshot", "restore", "delete"])
async def test_a_caller_that_goes_away_leaves_no_half_done_write_behind(folder, monkeypatch, what):
    """Memory and disk agree afterwards, and no image was observed while the state was being written."""
    store, sessions = start(folder)
    session = (await sessions.create("me", ABOUT, TEXT))["id"]
    earlier = await sessions.snapshot("me", session)
    await observe(sessions, session, 0)
    entered, released = threading.Event(), threading.Event()
    method = {"snapshot": "save_state", "restore": "replace_state", "delete": "delete"}[what]
    original = getattr(store, method)

    def held(*arguments):
        entered.set()
        released.wait(60)
        return original(*arguments)

    monkeypatch.setattr(store, method, held)
    arguments = (earlier,) if what == "restore" else ()
    call = asyncio.create_task(getattr(sessions, what)("me", session, *arguments))
    await asyncio.to_thread(entered.wait, 60)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    waiting = asyncio.create_task(observe(sessions, session, 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    released.set()
    if what == "delete":
        with pytest.raises(NotFound):
            await waiting
        assert store.find("me", "stream", session) is None
    else:
        before = {"snapshot": 1, "restore": 0}[what]
        assert (await waiting)[0] == before
        assert store.find("me", "stream", session).observed == before
    await sessions.stop()
    store.close()


async def test_deleting_while_calls_wait_answers_them_that_there_is_none(folder, monkeypatch):
    store, sessions = start(folder)
    session = (await sessions.create("me", ABOUT, TEXT))["id"]
    begun, go_on, plain = threading.Event(), threading.Event(), module._observe_all

    def held(stream, features):
        begun.set()
        go_on.wait(30)
        return plain(stream, features)

    monkeypatch.setattr(module, "_observe_all", held)
    first = asyncio.create_task(observe(sessions, session, 0))
    await asyncio.to_thread(begun.wait, 30)
    deletion = asyncio.create_task(sessions.delete("me", session))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(observe(sessions, session, i)) for i in range(1, 4)]
    await asyncio.sleep(0)
    go_on.set()
    assert (await first)[0] == 0
    await deletion
    refused = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, NotFound) for result in refused)
    assert store.find("me", "stream", session) is None
    await sessions.stop()
    store.close()
