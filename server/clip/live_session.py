"""One stream in memory: its state, the answers given under idempotency keys, and what no snapshot holds yet."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from covervlm.server.clip.methods.contracts import RunningStream, Stream
from covervlm.server.clip.methods.registry import method_class
from covervlm.server.clip.tensors import BadTensors, pack, unpack
from covervlm.server.core.errors import Conflict
from covervlm.server.store.records import Artifact, KeyedAnswer

REMEMBERED_KEYS = 4096
REMEMBERED_BYTES = 16 * 1024**2
"""A session remembers its newest idempotency keys, as many as these two allow; the last one always."""


@dataclass(eq=False)
class LiveSession:
    """A session in memory; whoever changes it holds `lock`.

    `saved` is how many images the snapshot on disk holds, `remembered` how many characters the answers take.
    """

    session: Artifact
    method: Stream
    stream: RunningStream
    answers: OrderedDict[str, KeyedAnswer] = field(default_factory=OrderedDict)
    remembered: int = 0
    saved: int = 0
    unsaved: list[KeyedAnswer] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    timer: asyncio.TimerHandle | None = None
    deleted: bool = False

    @classmethod
    def rebuild(cls, stored: Artifact, text_proxies: Tensor, answers: list[KeyedAnswer]) -> "LiveSession":
        """The session in the state of its snapshot."""
        method: Stream = method_class("stream", str(stored.method))(**stored.card["parameters"])
        stream = method.open(text_proxies, stored.card["horizon"])
        stream.restore(read_state(method, unpack(stored.state)[0]))
        known = OrderedDict((answer.key, answer) for answer in answers)
        remembered = sum(len(answer.answer) for answer in answers)
        return cls(stored, method, stream, known, remembered, saved=stream.observed)

    @property
    def dirty(self) -> bool:
        """Whether it knows anything that the snapshot lacks."""
        return bool(self.unsaved) or self.saved != self.stream.observed

    @property
    def oldest_number(self) -> int:
        """The number of the oldest answer remembered; the store may forget those before it."""
        return next(iter(self.answers.values())).number if self.answers else 0

    def recall(self, key: str, digest: str) -> Mapping[str, Any] | None:
        """The first answer to this key, if there was one. Conflict where the key came with another request."""
        record = self.answers.get(key)
        if record is None:
            return None
        if record.digest != digest:
            message = "This Idempotency-Key was used for another request; use a new key for each request."
            raise Conflict(message, code="idempotency_key_reused")
        return json.loads(record.answer)

    def remember(self, key: str, digest: str, number: int, answer: Mapping[str, Any]) -> None:
        """Keep the answer to the call whose first image was the session's image `number`."""
        record = KeyedAnswer(key, number, digest, json.dumps(answer))
        self.answers[key] = record
        self.unsaved.append(record)
        self.remembered += len(record.answer)
        while len(self.answers) > REMEMBERED_KEYS or (self.remembered > REMEMBERED_BYTES and len(self.answers) > 1):
            self.remembered -= len(self.answers.popitem(last=False)[1].answer)

    def check_snapshot(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Any:
        """The state in a snapshot. BadTensors for one that does not belong to this session's classes and model."""
        state = read_state(self.method, tensors)
        if about.get("classes") != self.session.card["classes"]:
            raise BadTensors("The snapshot belongs to a stream with other classes.")
        if about.get("fingerprint") != self.session.card["fingerprint"]:
            raise BadTensors("The snapshot was taken with another model.")
        try:
            self.stream.check(state)
        except ValueError as error:
            raise BadTensors(f"The snapshot does not fit: {error}.") from None
        return state

    def restore(self, state: Any) -> None:
        """Take over a state that is on disk already, and forget the answers so far."""
        self.stream.restore(state)
        self.answers.clear()
        self.unsaved.clear()
        self.remembered = 0
        self.saved = state.observed
        self.stop_timer()

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def groups(self) -> list[dict[str, Any]]:
        """What became of each class; nothing else may use the stream meanwhile."""
        moved, classes = self.stream.moved(), self.session.card["classes"]
        sizes = [None] * len(classes) if moved.sizes is None else [int(size) for size in moved.sizes.tolist()]
        found = zip(classes, sizes, moved.drift.tolist(), strict=True)
        return [{"label": label, "size": size, "drift": round(drift, 4)} for label, size, drift in found]

    def describe(self) -> dict[str, Any]:
        return describe(self.session, self.stream.observed, self.saved)


def describe(session: Artifact, observed: int, saved: int) -> dict[str, Any]:
    """A session as its owner sees it; `observed` images are in memory, and `saved` of them on disk."""
    return {
        "id": session.id,
        "method": session.method,
        "created": session.created,
        **session.card,
        "observed": observed,
        "snapshot_observed": saved,
        "past_horizon": observed >= session.card["horizon"],
    }


def write_state(state: Any, about: Mapping[str, Any]) -> bytes:
    """A stream's state as a safetensors file: every field is a tensor or a whole number."""
    return pack({field.name: torch.as_tensor(getattr(state, field.name)) for field in fields(state)}, about)


def read_state(method: Stream, tensors: Mapping[str, Tensor]) -> Any:
    """The state in a file that `write_state` made. Raises BadTensors for anything else."""
    try:
        values = {field.name: tensors[field.name] for field in fields(method.state)}
        numbers = {field.name for field in fields(method.state) if field.type in (int, "int")}
        return method.state(**{name: int(t) if name in numbers else t.float() for name, t in values.items()})
    except (KeyError, OverflowError, RuntimeError, ValueError):
        raise BadTensors("This file is not a snapshot of a stream by the method of this one.") from None
