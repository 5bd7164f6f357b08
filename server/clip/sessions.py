"""Streams of many callers: answered in order, exactly once per key, and kept by snapshots."""

import asyncio
import contextlib
import functools
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from covervlm.server.clip.live_session import LiveSession, describe, write_state
from covervlm.server.clip.methods.contracts import Prediction, RunningStream, Stream
from covervlm.server.clip.methods.registry import method_class
from covervlm.server.clip.tensors import BadTensors, pack, unpack
from covervlm.server.core.errors import Damaged, NotFound
from covervlm.server.store import Store
from covervlm.server.store.records import Artifact

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

Render = Callable[[Sequence[Prediction]], Mapping[str, Any]]
"""Makes the caller's answer from predictions; called in a thread."""


@dataclass(frozen=True)
class SnapshotInterval:
    """A snapshot is due after so many images, or so many seconds after the first that it lacks."""

    images: int = 64
    seconds: float = 1.0


def _to_its_end(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Once begun, the call is finished even if its caller leaves, so that no thread works on an unlocked session."""

    @functools.wraps(method)
    async def shielded(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.shield(method(*args, **kwargs))

    return shielded


class Sessions:
    """Called on the event loop. Images of one session are observed one after another, sessions run in parallel.

    A crash takes a session back to its last snapshot, together with its memory of idempotency keys: a call that the
    snapshot lacks counts again when it is retried, one that it holds is answered from memory.
    """

    def __init__(self, store: Store, interval: SnapshotInterval, *, threads: int = 2, max_loaded: int = 64) -> None:
        self._store = store
        self._interval = interval
        self._max_loaded = max_loaded
        self._live: OrderedDict[str, LiveSession] = OrderedDict()
        self._loading = asyncio.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sessions")
        self._saves: set[asyncio.Task[None]] = set()

    async def create(
        self,
        owner: str,
        about: Mapping[str, Any],
        text_proxies: Tensor,
        *,
        method: str = "onzeta",
        admit: Callable[[int, int], None] = lambda count, size: None,
    ) -> dict[str, Any]:
        """A new stream over the classes of `text_proxies` (d, K); `about` holds at least `horizon`, `parameters`."""
        opener: Stream = method_class("stream", method)(**about["parameters"])
        stream = opener.open(text_proxies, about["horizon"])

        def keep() -> Artifact:
            proxies, state = pack({"text_proxies": text_proxies}, {}), write_state(stream.snapshot(), {})
            return self._store.add(owner, "stream", about, proxies, method=method, state=state, admit=admit)

        session = await self._store.soon(keep)
        live = LiveSession(session, opener, stream)
        self._live[session.id] = live
        await self._make_room()
        return live.describe()

    async def describe(self, owner: str, session: str) -> dict[str, Any]:
        """What the session is and how far it is. NotFound also where it belongs to somebody else."""
        return (await self._find(owner, session)).describe()

    @_to_its_end
    async def look(self, owner: str, session: str) -> dict[str, Any]:
        """The same with `groups`: how far each class has moved and, where they are counted, its images."""
        async with self._locked(owner, session) as live:
            groups = await asyncio.get_running_loop().run_in_executor(self._pool, live.groups)
            return {**live.describe(), "groups": groups}

    async def all(self, owner: str) -> list[dict[str, Any]]:
        """Oldest first."""
        entries = []
        for session in await self._store.soon(self._store.artifacts, owner, "stream"):
            live = self._live.get(session.id)
            entries.append(describe(session, session.observed, session.observed) if live is None else live.describe())
        return entries

    async def recall(self, owner: str, session: str, key: str, digest: str) -> Mapping[str, Any] | None:
        """The first answer to this key, if there was one. Conflict where the key came with another request."""
        return (await self._find(owner, session)).recall(key, digest)

    @_to_its_end
    async def observe(
        self, owner: str, session: str, features: Tensor, render: Render, *, key: str | None, digest: str
    ) -> Mapping[str, Any]:
        """Label images and learn from them: features (n, d) with unit rows, in order. Returns what `render` makes."""
        if not bool(features.isfinite().all()):
            raise ValueError("features must be finite")
        async with self._locked(owner, session) as live:
            if key is not None and (known := live.recall(key, digest)) is not None:
                return known
            loop = asyncio.get_running_loop()
            number = live.stream.observed
            answer = await loop.run_in_executor(self._pool, _answer, live.stream, features, render)
            if key is not None:
                live.remember(key, digest, number, answer)
            if live.stream.observed - live.saved >= self._interval.images:
                await self._save(live)
            elif live.timer is None:
                live.timer = loop.call_later(self._interval.seconds, self._save_soon, live)
            return answer

    @_to_its_end
    async def snapshot(self, owner: str, session: str) -> bytes:
        """The state as a safetensors file, also kept by the server."""
        async with self._locked(owner, session) as live:
            await self._save(live)
            about = {name: live.session.card[name] for name in ("classes", "fingerprint")}
            return await asyncio.to_thread(write_state, live.stream.snapshot(), about)

    @_to_its_end
    async def restore(self, owner: str, session: str, data: bytes) -> dict[str, Any]:
        """Put the session into a state that `snapshot` gave out; keys answered so far are forgotten.

        Raises BadTensors, and changes nothing, for data that is not a snapshot of a session over these classes.
        """
        async with self._locked(owner, session) as live:

            def keep() -> Any:
                state = live.check_snapshot(*unpack(data))
                self._store.replace_state(session, state.observed, write_state(state, {}))
                return state

            live.restore(await self._store.soon(keep))
            return live.describe()

    @_to_its_end
    async def delete(self, owner: str, session: str) -> None:
        async with self._loading:
            if session not in self._live:  # it may be damaged, and need not be known to be deleted
                if not await self._store.soon(self._store.delete, owner, "stream", session):
                    raise NotFound("stream", session)
                return
        async with self._locked(owner, session) as live:
            await self._store.soon(self._store.delete, owner, "stream", session)
            live.stop_timer()
            live.deleted = True
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
    async def _locked(self, owner: str, session: str) -> AsyncIterator[LiveSession]:
        """Exclusive use of the session. NotFound also where it belongs to somebody else."""
        while True:
            live = await self._find(owner, session)
            async with live.lock:
                if live.deleted:
                    raise NotFound("stream", session)
                # While this call waited, the session may have been dropped from memory and loaded anew.
                if self._live.get(session) is live:
                    yield live
                    return

    async def _find(self, owner: str, session: str) -> LiveSession:
        live = self._live.get(session)
        if live is None:
            async with self._loading:
                live = self._live.get(session) or await self._load(owner, session)
        if live.session.owner != owner:
            raise NotFound("stream", session)
        if session in self._live:
            self._live.move_to_end(session)
        return live

    async def _load(self, owner: str, session: str) -> LiveSession:
        live = await self._store.soon(self._rebuild, owner, session)
        self._live[session] = live
        await self._make_room()
        return live

    def _rebuild(self, owner: str, session: str) -> LiveSession:
        stored = self._store.find(owner, "stream", session)
        if stored is None:
            raise NotFound("stream", session)
        data = self._store.read(stored)
        try:
            return LiveSession.rebuild(stored, unpack(data)[0]["text_proxies"], self._store.answers(stored.id))
        except (BadTensors, KeyError, ValueError) as error:
            log.error("the stored stream %s cannot be used: %s", session, error)
            raise Damaged("stream", session) from None

    @_to_its_end
    async def _make_room(self) -> None:
        """Save and drop the sessions that were idle longest."""
        for session, live in list(self._live.items()):
            if len(self._live) <= self._max_loaded:
                return
            if live.lock.locked():
                continue
            async with live.lock:
                await self._save(live)
                if not live.dirty and not live.deleted:
                    self._live.pop(session, None)

    def _save_soon(self, live: LiveSession) -> None:
        async def save() -> None:
            async with live.lock:
                await self._save(live)

        task = asyncio.get_running_loop().create_task(save())
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)

    async def _save(self, live: LiveSession) -> None:
        """Write state and new answers in one transaction. The lock is held; a failure leaves them for the next time."""
        live.stop_timer()
        if live.deleted or not live.dirty:
            return
        observed, answers, oldest = live.stream.observed, list(live.unsaved), live.oldest_number

        def write() -> None:
            state = write_state(live.stream.snapshot(), {})  # a few megabytes: not on the event loop
            self._store.save_state(live.session.id, observed, state, answers, oldest)

        try:
            await self._store.soon(write)
        except Exception:
            log.exception("stream %s could not be saved; it goes on in memory", live.session.id)
            return
        live.saved = observed
        live.unsaved = live.unsaved[len(answers) :]


def _answer(stream: RunningStream, features: Tensor, render: Render) -> Mapping[str, Any]:
    """In a thread of the pool."""
    return render(_observe_all(stream, features))


def _observe_all(stream: RunningStream, features: Tensor) -> Sequence[Prediction]:
    return stream.observe_all(features)
