"""guidellm as the load generator: what is measured, in guidellm's terms, and what comes back."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any, Self

from speed.workload import Asked

DRIVER = Path(__file__).with_name("guidellm_driver.py")
NATURAL_LIMIT = 16
"""The longest answer, in tokens, where answers may end by themselves."""
GRACE_SECONDS = 60
"""How much longer than the measurement itself guidellm may take before it is ended."""


@dataclass(frozen=True)
class Load:
    """Closed loop: `concurrency` requests at any time. Open loop: arrivals of a Poisson process, `rate` a second.

    Closed loops stop when `requests` answers have arrived, with the loop still full; open ones wait for all answers.
    """

    requests: int
    concurrency: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        return f"{self.concurrency} at once" if self.concurrency else f"{self.rate:.2f}/s"

    @property
    def closed(self) -> bool:
        return self.concurrency is not None


@dataclass(frozen=True)
class Variant:
    """One row of the table: a server, and the fields that its requests carry beside the question."""

    name: str
    url: str
    model: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """One request as the client saw it: seconds since the epoch, and seconds. `error` is None for a whole answer."""

    started: float
    ended: float
    first_token: float | None
    inter_token: float | None
    prompt_tokens: int
    output_tokens: int
    error: str | None
    right: bool


class LoadGenerator:
    """A guidellm process that measures one load on one variant after the other; a context manager."""

    def __init__(self, python: Path) -> None:
        """python: the interpreter of the environment that holds guidellm."""
        self._command = [str(python), str(DRIVER)]

    def __enter__(self) -> Self:
        # One process for the requests is plenty for a server on two cores, and leaves it the cores.
        limits = {"GUIDELLM__MAX_WORKER_PROCESSES": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        quiet = {"GUIDELLM__LOGGING__CONSOLE_LOG_LEVEL": "ERROR"}
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **limits, **quiet},
            start_new_session=True,
        )
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._kill()

    def _kill(self) -> None:
        """End guidellm with its worker processes, which would outlive it."""
        os.killpg(self._process.pid, signal.SIGKILL)

    def measure(
        self, load: Load, variant: Variant, asked: Sequence[Asked], *, tokens: int | None, seconds: float
    ) -> list[Reply]:
        """The replies to one load, in at most about `seconds`. tokens: of every answer, None lets answers end.

        Raises RuntimeError where guidellm fails or hangs.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        hung = Timer(seconds + GRACE_SECONDS, self._kill)
        hung.start()
        try:
            print(json.dumps(spec(load, variant, asked, tokens, seconds)), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        finally:
            hung.cancel()
        if not line:
            raise RuntimeError(f"guidellm gave up on {variant.name}, {load.name}; what it said is above")
        answers = {one.key: one.answer for one in asked}
        return [reply(record, answers) for record in json.loads(line) if record["outcome"] != "unfinished"]


def spec(load: Load, variant: Variant, asked: Sequence[Asked], tokens: int | None, seconds: float) -> dict[str, Any]:
    """The measurement as guidellm's configuration."""
    length = {"max_tokens": NATURAL_LIMIT} if tokens is None else {"max_tokens": tokens}
    strategy = (
        {"kind": "concurrent", "streams": [load.concurrency]}
        if load.closed
        else {"kind": "poisson", "rate": [load.rate]}
    )
    rows = [{"question": one.question, "image": {"type": "image_url", "image": one.image}} for one in asked]
    return {
        "backend": {
            "kind": "openai_http",
            "target": variant.url,
            "model": variant.model,
            "http2": False,
            "timeout": seconds,
            "extras": {"body": {"temperature": 0, **length, **variant.fields}},
        },
        "profile": strategy,
        "constraints": [
            {"kind": "min_requests" if load.closed else "max_requests", "count": load.requests},
            {"kind": "max_duration", "seconds": seconds},
        ],
        "data": [{"kind": "in_memory_dict_list", "data": rows}],
        "data_preprocessors": [],
        "outputs": [],
    }


def reply(record: Mapping[str, Any], answers: Mapping[tuple[str, str], str]) -> Reply:
    """A driver's record with its answer marked right or wrong."""
    values = {name: record[name] for name in Reply.__dataclass_fields__ if name != "right"}
    if record["outcome"] == "error":
        values["error"] = record["error"] or "error"
    expected = answers.get((record["image"], record["question"]))
    return Reply(**values, right=record["text"].strip() == expected)
