"""OnZeta streams of many callers: answered in order, exactly once per key, and kept by snapshots."""

import asyncio
import contextlib
import json
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from covervlm.server.clip.onzeta import OnlinePrediction, OnlineState, OnlineZeroShot
from covervlm.server.clip.tensors import BadTensors, pack, unpack
from covervlm.server.resources import Conflict, NotFound
from covervlm.server.store import Answer, Session, Store

log = logging.getLogger(__name__)

REMEMBERED_KEYS = 4096
"""How many idempotency keys a session remembers, the newest ones."""

Render = Callable[[Sequence[OnlinePrediction]], Mapping[str, Any]]


@dataclass(frozen=True)
class SnapshotInterval:
    """A snapshot is due after so many images, or so many seconds after the first that it lacks."""

    images: int = 64
    seconds: float = 1.0


@dataclass(eq=False)
class _Live:
    session: Session
    stream: OnlineZeroShot
    answers: OrderedDict[str, Answer]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    unsaved: list[Answer] = field(default_factory=list)
    saved: int = 0
    timer: asyncio.TimerHandle | None = None
    deleted: bool = False


class Sessions:
    """Called on the event loop. Images of one session are observed one after another, sessions run in parallel.

    A crash takes a session back to its last snapshot, together with its memory of idempotency keys: a call that the
    snapshot lacks counts again when it is retried, one that it holds is answered from memory.
    """

    def __init__(self, store: Store, interval: SnapshotInterval, *, threads: int = 2, max_loaded: int = 64) -> None:
        self._store = store
        self._interval = interval
        self._max_loaded = max_loaded
        self._live: OrderedDict[str, _Live] = OrderedDict()
        self._loading = asyncio.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sessions")
        self._saves: set[asyncio.Task[None]] = set()

    async def create(self, owner: str, about: Mapping[str, Any], text_proxies: Tensor) -> dict[str, Any]:
        """A new stream over the classes of `text_proxies` (d, K); `about` holds at least `horizon`, `parameters`."""
        stream = OnlineZeroShot(text_proxies, about["horizon"], **about["parameters"])
        data = pack({"text_proxies": text_proxies}, {})
        session = await asyncio.to_thread(self._store.add_session, owner, about, data, _state_bytes(stream, {}))
        live = _Live(session, stream, OrderedDict())
        self._live[session.id] = live
        await self._make_room()
        return _describe(live)

    async def describe(self, owner: str, session: str) -> dict[str, Any]:
        """What the session is and how far it is. NotFound also where it belongs to somebody else."""
        return _describe(await self._find(owner, session))

    def list(self, owner: str) -> list[dict[str, Any]]:
        entries = []
        for session in self._store.sessions(owner):
            live = self._live.get(session.id)
            entries.append(
                _about(session, session.observed if live is None else live.stream.observed, session.observed)
            )
        return entries

    async def recall(self, owner: str, session: str, key: str, digest: str) -> Mapping[str, Any] | None:
        """The first answer to this key, if there was one. Conflict where the key came with another request."""
        live = await self._find(owner, session)
        return _recall(live, key, digest)

    async def observe(
        self, owner: str, session: str, features: Tensor, render: Render, *, key: str | None, digest: str
    ) -> Mapping[str, Any]:
        """Label images and learn from them: features (n, d) with unit rows, in order. Returns what `render` makes.

        Once begun, the update is finished and remembered even if the caller goes away.
        """
        if not bool(features.isfinite().all()):
            raise ValueError("features must be finite")
        return await asyncio.shield(self._observe(owner, session, features, render, key, digest))

    async def _observe(
        self, owner: str, session: str, features: Tensor, render: Render, key: str | None, digest: str
    ) -> Mapping[str, Any]:
        async with self._locked(owner, session) as live:
            if key is not None and (known := _recall(live, key, digest)) is not None:
                return known
            loop = asyncio.get_running_loop()
            predictions = await loop.run_in_executor(self._pool, _observe_all, live.stream, features)
            answer = render(predictions)
            if key is not None:
                record = Answer(key, predictions[0].index, digest, json.dumps(answer))
                live.answers[key] = record
                live.unsaved.append(record)
                while len(live.answers) > REMEMBERED_KEYS:
                    live.answers.popitem(last=False)
            if live.stream.observed - live.saved >= self._interval.images:
                await self._save(live)
            elif live.timer is None:
                live.timer = loop.call_later(self._interval.seconds, self._save_soon, live)
            return answer

    async def snapshot(self, owner: str, session: str) -> bytes:
        """The state as a safetensors file, also kept by the server."""
        async with self._locked(owner, session) as live:
            await self._save(live)
            about = {name: live.session.about[name] for name in ("classes", "fingerprint")}
            return _state_bytes(live.stream, about)

    async def restore(self, owner: str, session: str, data: bytes) -> dict[str, Any]:
        """Put the session into a state that `snapshot` gave out; keys answered so far are forgotten.

        Raises BadTensors, and changes nothing, for data that is no snapshot of a session over these classes.
        """
        tensors, about = unpack(data)
        state = _state(tensors)
        async with self._locked(owner, session) as live:
            if about.get("classes") != live.session.about["classes"]:
                raise BadTensors("The snapshot belongs to a session with other classes.")
            if about.get("fingerprint") != live.session.about["fingerprint"]:
                raise BadTensors("The snapshot was taken with another model.")
            try:
                live.stream.restore(state)
            except ValueError as error:
                raise BadTensors(f"The snapshot does not fit: {error}.") from None
            _stop_timer(live)
            live.answers.clear()
            live.unsaved.clear()
            live.saved = live.stream.observed
            data = _state_bytes(live.stream, {})
            await asyncio.to_thread(self._store.replace_session, session, live.saved, data)
            return _describe(live)

    async def delete(self, owner: str, session: str) -> None:
        async with self._locked(owner, session) as live:
            _stop_timer(live)
            live.deleted = True
            await asyncio.to_thread(self._store.delete_session, owner, session)
            self._live.pop(session, None)

    async def stop(self) -> None:
        """Save every session as it is."""
        for live in list(self._live.values()):
            async with live.lock:
                await self._save(live)
        await asyncio.gather(*self._saves, return_exceptions=True)
        self._pool.shutdown(wait=True)

    # Between memory and store.

    @contextlib.asynccontextmanager
    async def _locked(self, owner: str, session: str) -> AsyncIterator[_Live]:
        """The session, to oneself. NotFound also where it belongs to somebody else."""
        while True:
            live = await self._find(owner, session)
            async with live.lock:
                if live.deleted:
                    raise NotFound("session", session)
                # While this call waited, the session may have been dropped from memory and loaded anew.
                if self._live.get(session) is live:
                    yield live
                    return

    async def _find(self, owner: str, session: str) -> _Live:
        live = self._live.get(session)
        if live is None:
            async with self._loading:
                live = self._live.get(session) or await self._load(owner, session)
        if live.session.owner != owner:
            raise NotFound("session", session)
        if session in self._live:
            self._live.move_to_end(session)
        return live

    async def _load(self, owner: str, session: str) -> _Live:
        stored = await asyncio.to_thread(self._store.session, owner, session)
        if stored is None:
            raise NotFound("session", session)
        live = await asyncio.to_thread(self._rebuild, stored)
        self._live[session] = live
        await self._make_room()
        return live

    def _rebuild(self, stored: Session) -> _Live:
        tensors, _ = unpack(self._store.read_blob(stored.blob))
        stream = OnlineZeroShot(tensors["text_proxies"], stored.about["horizon"], **stored.about["parameters"])
        stream.restore(_state(unpack(stored.state)[0]))
        answers = OrderedDict((answer.key, answer) for answer in self._store.answers(stored.id))
        return _Live(stored, stream, answers, saved=stream.observed)

    async def _make_room(self) -> None:
        """Save and drop the sessions that were idle longest."""
        for session, live in list(self._live.items()):
            if len(self._live) <= self._max_loaded:
                return
            if live.lock.locked():
                continue
            async with live.lock:
                await self._save(live)
                if not live.unsaved and live.saved == live.stream.observed and not live.deleted:
                    self._live.pop(session, None)

    def _save_soon(self, live: _Live) -> None:
        async def save() -> None:
            async with live.lock:
                await self._save(live)

        task = asyncio.get_running_loop().create_task(save())
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)

    async def _save(self, live: _Live) -> None:
        """Write state and new answers in one transaction. The lock is held; a failure leaves them for the next time."""
        _stop_timer(live)
        if live.deleted or (not live.unsaved and live.saved == live.stream.observed):
            return
        observed, answers = live.stream.observed, list(live.unsaved)
        oldest = next(iter(live.answers.values())).number if live.answers else 0
        state = _state_bytes(live.stream, {})
        try:
            await asyncio.to_thread(self._store.save_session, live.session.id, observed, state, answers, oldest)
        except Exception:
            log.exception("session %s could not be saved; it goes on in memory", live.session.id)
            return
        live.saved = observed
        live.unsaved = live.unsaved[len(answers) :]


def _observe_all(stream: OnlineZeroShot, features: Tensor) -> list[OnlinePrediction]:
    return [stream.observe(feature) for feature in features]


def _recall(live: _Live, key: str, digest: str) -> Mapping[str, Any] | None:
    record = live.answers.get(key)
    if record is None:
        return None
    if record.digest != digest:
        message = "This Idempotency-Key was used for another request; use a new key for each request."
        raise Conflict(message, code="idempotency_key_reused")
    answer: Mapping[str, Any] = json.loads(record.answer)
    return answer


def _stop_timer(live: _Live) -> None:
    if live.timer is not None:
        live.timer.cancel()
        live.timer = None


def _describe(live: _Live) -> dict[str, Any]:
    return _about(live.session, live.stream.observed, live.saved)


def _about(session: Session, observed: int, saved: int) -> dict[str, Any]:
    horizon = session.about["horizon"]
    return {
        "id": session.id,
        "created": session.created,
        **session.about,
        "observed": observed,
        "snapshot_observed": saved,
        "past_horizon": observed >= horizon,
    }


def _state_bytes(stream: OnlineZeroShot, about: Mapping[str, Any]) -> bytes:
    state = stream.snapshot()
    observed = torch.tensor(state.observed, dtype=torch.int64)
    return pack({"rho": state.rho, "vision_proxies": state.vision_proxies, "observed": observed}, about)


def _state(tensors: Mapping[str, Tensor]) -> OnlineState:
    with contextlib.suppress(KeyError, RuntimeError, ValueError):
        rho, proxies = tensors["rho"], tensors["vision_proxies"]
        return OnlineState(rho.float(), proxies.float(), int(tensors["observed"]))
    raise BadTensors("The data is no snapshot of a session.")
