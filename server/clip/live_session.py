"""One OnZeta stream in memory: its state, the answers given under idempotency keys, and what no snapshot holds yet."""

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from covervlm.server.clip.onzeta import OnlineState, OnlineZeroShot
from covervlm.server.clip.tensors import BadTensors, pack, unpack
from covervlm.server.resources import Conflict
from covervlm.server.store.records import Answer, Session

REMEMBERED_KEYS = 4096
REMEMBERED_BYTES = 16 * 1024**2
"""A session remembers its newest idempotency keys, as many as these two allow; the last one always."""


@dataclass(eq=False)
class LiveSession:
    """Whoever changes it holds `lock`.

    `saved` is how many images the snapshot on disk holds, `remembered` how many characters the answers take.
    """

    session: Session
    stream: OnlineZeroShot
    answers: OrderedDict[str, Answer] = field(default_factory=OrderedDict)
    remembered: int = 0
    saved: int = 0
    unsaved: list[Answer] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    timer: asyncio.TimerHandle | None = None
    deleted: bool = False

    @classmethod
    def rebuild(cls, stored: Session, text_proxies: Tensor, answers: list[Answer]) -> "LiveSession":
        """The session as its snapshot has it."""
        stream = OnlineZeroShot(text_proxies, stored.about["horizon"], **stored.about["parameters"])
        stream.restore(read_state(unpack(stored.state)[0]))
        known = OrderedDict((answer.key, answer) for answer in answers)
        return cls(stored, stream, known, sum(len(answer.answer) for answer in answers), saved=stream.observed)

    @property
    def dirty(self) -> bool:
        """Whether it knows anything that the snapshot lacks."""
        return bool(self.unsaved) or self.saved != self.stream.observed

    @property
    def oldest_number(self) -> int:
        """Of the answers remembered; the store may forget those before it."""
        return next(iter(self.answers.values())).number if self.answers else 0

    def recall(self, key: str, digest: str) -> Mapping[str, Any] | None:
        """The first answer to this key, if there was one. Conflict where the key came with another request."""
        record = self.answers.get(key)
        if record is None:
            return None
        if record.digest != digest:
            message = "This Idempotency-Key was used for another request; use a new key for each request."
            raise Conflict(message, code="idempotency_key_reused")
        answer: Mapping[str, Any] = json.loads(record.answer)
        return answer

    def remember(self, key: str, digest: str, number: int, answer: Mapping[str, Any]) -> None:
        """Keep the answer to the call whose first image was the session's image `number`."""
        record = Answer(key, number, digest, json.dumps(answer))
        self.answers[key] = record
        self.unsaved.append(record)
        self.remembered += len(record.answer)
        while len(self.answers) > REMEMBERED_KEYS or (self.remembered > REMEMBERED_BYTES and len(self.answers) > 1):
            self.remembered -= len(self.answers.popitem(last=False)[1].answer)

    def check_snapshot(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> OnlineState:
        """The state in a snapshot. BadTensors for one that does not belong to this session's classes and model."""
        state = read_state(tensors)
        if about.get("classes") != self.session.about["classes"]:
            raise BadTensors("The snapshot belongs to a session with other classes.")
        if about.get("fingerprint") != self.session.about["fingerprint"]:
            raise BadTensors("The snapshot was taken with another model.")
        try:
            self.stream.check(state)
        except ValueError as error:
            raise BadTensors(f"The snapshot does not fit: {error}.") from None
        return state

    def restore(self, state: OnlineState) -> None:
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

    def describe(self) -> dict[str, Any]:
        return describe(self.session, self.stream.observed, self.saved)


def describe(session: Session, observed: int, saved: int) -> dict[str, Any]:
    """What its owner is told of a session of which `observed` images are in memory and `saved` on disk."""
    return {
        "id": session.id,
        "created": session.created,
        **session.about,
        "observed": observed,
        "snapshot_observed": saved,
        "past_horizon": observed >= session.about["horizon"],
    }


def write_state(state: OnlineState, about: Mapping[str, Any]) -> bytes:
    """A stream's state as a safetensors file."""
    observed = torch.tensor(state.observed, dtype=torch.int64)
    return pack({"rho": state.rho, "vision_proxies": state.vision_proxies, "observed": observed}, about)


def read_state(tensors: Mapping[str, Tensor]) -> OnlineState:
    """The state in a file that `write_state` made. Raises BadTensors for anything else."""
    with contextlib.suppress(KeyError, RuntimeError, ValueError):
        rho, proxies = tensors["rho"], tensors["vision_proxies"]
        return OnlineState(rho.float(), proxies.float(), int(tensors["observed"]))
    raise BadTensors("The data is no snapshot of a session.")
