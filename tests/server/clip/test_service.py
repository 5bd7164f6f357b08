"""What the CLIP service keeps to itself: quotas, the cache of proxies, shared batches, and nothing on disk."""

import asyncio
import io

import numpy as np
import pytest
import pytest_asyncio
from clip_space.class_proxies import class_proxies
from PIL import Image

from covervlm.server.clip import classifiers
from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.encoder.templates import ENSEMBLE
from covervlm.server.clip.quotas import Quotas
from covervlm.server.clip.service import ClipService
from covervlm.server.clip.sessions import SnapshotInterval
from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import EngineUnavailable, InvalidRequest, QuotaExceeded
from covervlm.server.demo import clip_path
from covervlm.server.settings import Settings
from covervlm.server.wiring import build_clip
from tests.server.api.scripted import ScriptedEngine

NAMES = ["star", "ring", "cross"]
FIT = {"iterations": 5, "tau_vision": 0.04}


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 50, 3), dtype=np.uint8))


@pytest_asyncio.fixture
async def service(tmp_path):
    quotas = Quotas(classifiers=1, streams=1, unfinished_jobs=1, upload_bytes=10_000)
    service = ClipService(lambda: ClipEncoder(str(clip_path()), device="cpu"), tmp_path, name="c", quotas=quotas)
    await service.start()
    yield service
    await service.stop()


async def fit(service: ClipService, owner: str, name: str) -> str:
    job = await service.classifiers.fit(
        Caller(owner),
        name,
        classes=NAMES,
        templates=ENSEMBLE,
        images=[picture(1)],
        embeddings=None,
        uploads=[],
        parameters=FIT,
    )
    async for state in service.jobs.watch(owner, job.id):
        last = state
    return last.state


async def session(service: ClipService, owner: str) -> dict:
    return await service.streams.open(owner, classes=NAMES, templates=ENSEMBLE, horizon=5, parameters={})


async def test_quotas_hold_for_each_owner_and_deletion_makes_room(service):
    assert await fit(service, "me", "one") == "succeeded"
    with pytest.raises(QuotaExceeded):
        await fit(service, "me", "two")
    assert await fit(service, "you", "one") == "succeeded"
    await service.classifiers.delete("me", "one")
    assert await fit(service, "me", "two") == "succeeded"

    first = await session(service, "me")
    with pytest.raises(QuotaExceeded):
        await session(service, "me")
    await session(service, "you")
    await service.sessions.delete("me", first["id"])
    await session(service, "me")


async def test_unfinished_jobs_are_limited(service):
    release = asyncio.Event()

    async def words():
        await release.wait()
        return ["red", "green"]

    job = await service.clusterings.start(Caller("me"), [picture(1), picture(2)], words, aspect="color", words=())
    with pytest.raises(QuotaExceeded):
        await service.clusterings.start(
            Caller("me"), [picture(1), picture(2)], None, aspect="color", words=("red", "green")
        )
    release.set()
    async for state in service.jobs.watch("me", job.id):
        last = state
    assert last.state == "succeeded", last.error


async def test_many_submissions_at_once_are_counted_one_by_one(service):
    release = asyncio.Event()

    async def words():
        await release.wait()
        return ["red", "green"]

    pictures = [picture(1), picture(2)]
    calls = [service.clusterings.start(Caller("me"), pictures, words, aspect="color", words=()) for _ in range(6)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, QuotaExceeded)]
    (job,) = [result for result in results if not isinstance(result, Exception)]
    assert len(refused) == 5
    release.set()
    async for _ in service.jobs.watch("me", job.id):
        pass


async def test_a_job_that_waits_for_words_can_be_cancelled_and_gives_up_asking(service):
    asked, given_up = asyncio.Event(), asyncio.Event()

    async def words():
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    job = await service.clusterings.start(Caller("me"), [picture(1), picture(2)], words, aspect="color", words=())
    await asked.wait()
    await service.jobs.cancel("me", job.id)
    await given_up.wait()
    async for state in service.jobs.watch("me", job.id):
        last = state
    assert last.state == "cancelled"


def test_quotas_and_intervals_are_those_of_the_settings(tmp_path):
    settings = Settings(
        data_dir=tmp_path,
        key_classifiers=1,
        key_streams=2,
        key_unfinished_jobs=3,
        key_stored_bytes="4KiB",
        snapshot_images=5,
        snapshot_seconds=0.5,
    )
    service = build_clip(settings, ScriptedEngine())
    assert service.quotas == Quotas(classifiers=1, streams=2, unfinished_jobs=3, bytes=4096)
    assert service._interval == SnapshotInterval(images=5, seconds=0.5)


async def test_stats_count_the_jobs_and_sessions_of_all_owners(service):
    assert (sum(service.stats().jobs.values()), service.stats().streams) == (0, 0)
    release = asyncio.Event()

    async def words():
        await release.wait()
        return ["red", "green"]

    pictures = [picture(1), picture(2)]
    jobs = [
        await service.clusterings.start(Caller(who), pictures, words, aspect="color", words=()) for who in ("me", "you")
    ]
    while (await service.jobs.get("me", jobs[0].id)).state != "running":
        await asyncio.sleep(0)
    await session(service, "me")
    await session(service, "you")
    stats = service.stats()
    assert dict(stats.jobs) == {"queued": 1, "running": 1, "succeeded": 0, "failed": 0, "cancelled": 0}
    assert stats.streams == 2
    await service.jobs.cancel("you", jobs[1].id)
    release.set()
    async for _ in service.jobs.watch("me", jobs[0].id):
        pass
    jobs = service.stats().jobs
    assert (jobs["succeeded"], jobs["cancelled"], jobs["running"]) == (1, 1, 0)


async def test_uploads_are_limited(service):
    def npy(rows: int) -> bytes:

        buffer = io.BytesIO()
        np.save(buffer, np.ones((rows, 64), np.float32))
        return buffer.getvalue()

    upload, _ = await service.uploads.read("me", npy(30))
    with pytest.raises(QuotaExceeded):
        await service.uploads.read("me", npy(30))
    await service.uploads.read("you", npy(30))
    service.uploads.remove("me", upload)
    await service.uploads.read("me", npy(30))


async def test_fits_and_prompts_beyond_memory_are_refused_before_any_work(service, monkeypatch):
    monkeypatch.setattr(classifiers, "MOST_SCORES", 2)
    with pytest.raises(InvalidRequest, match="fewer images"):
        await fit(service, "me", "one")
    assert service.store.jobs("me") == []
    many = [f"class {i}" for i in range(1001)]
    with pytest.raises(InvalidRequest, match="times templates"):
        await service.batched.class_proxies("me", many, ["{} " + str(i) for i in range(100)])


async def test_class_proxies_are_computed_once_and_as_the_encoder_does(service, monkeypatch):
    first = await service.batched.class_proxies("me", NAMES, ENSEMBLE)
    reference = class_proxies(service.encoder.embed_texts, NAMES)
    assert (first - reference).abs().max() < 1e-5
    monkeypatch.setattr(service.batched, "_texts", None)
    assert await service.batched.class_proxies("me", NAMES, ENSEMBLE) is first


async def test_what_one_owner_has_had_embedded_makes_no_answer_to_another_faster(service, monkeypatch):
    embedded = []
    plain = service.batched._texts
    monkeypatch.setattr(service.batched, "_texts", lambda ids, **kw: embedded.append(len(ids)) or plain(ids, **kw))
    for owner in ("me", "me", "you"):
        await service.batched.class_proxies(owner, NAMES, ENSEMBLE)
    assert embedded == [len(NAMES) * len(ENSEMBLE)] * 2


async def test_callers_share_the_models_batches(service, monkeypatch):
    sizes = []
    plain = service.batched._pixels._run
    monkeypatch.setattr(service.batched._pixels, "_run", lambda items: sizes.append(len(items)) or plain(items))
    alone = [await service.batched.embed(Caller("me"), {"input": picture(i)}) for i in range(6)]
    together = await asyncio.gather(*(service.batched.embed(Caller("me"), {"input": picture(i)}) for i in range(6)))
    for one, shared in zip(alone, together, strict=True):
        ours = np.frombuffer(one.vectors[0], "<f4")
        np.testing.assert_allclose(np.frombuffer(shared.vectors[0], "<f4"), ours, atol=1e-5)
    assert sizes[:6] == [1] * 6
    assert sum(sizes[6:]) == 6


async def test_no_image_and_no_feature_reaches_the_disk(service, tmp_path):
    image = picture(3)
    opened = await session(service, "me")
    await service.streams.observe(Caller("me"), opened["id"], [image], top=1, key="k", digest="d")
    assert await fit(service, "me", "one") == "succeeded"
    await service.sessions.snapshot("me", opened["id"])
    feature = (await service.batched.embed(Caller("me"), {"input": image})).vectors[0]
    on_disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(on_disk) > 10_000
    for needle in (feature[:32], feature[64:96], image.tobytes()[:32]):
        assert needle not in on_disk


async def test_a_service_that_cannot_start_or_has_stopped_says_so(tmp_path):
    def fail() -> ClipEncoder:
        raise ValueError("/secret/path is no CLIP")

    service = ClipService(fail, tmp_path, name="c")
    assert sum(service.stats().jobs.values()) == 0
    with pytest.raises(EngineUnavailable, match="cannot be loaded") as caught:
        await service.ready()
    assert "secret" not in str(caught.value)
    await service.stop()
    with pytest.raises(EngineUnavailable, match="shutting down"):
        await service.ready()
