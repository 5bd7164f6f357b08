"""The process's log, for people or as JSON lines; what callers send appears in it only if the operator asks for it."""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Literal

from covervlm.server.core.errors import EngineError

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered, for every log line about it."""

_HARMLESS_KINDS = (EngineError, ImportError, MemoryError, OSError)
_HARMLESS_NAMES = frozenset({"AcceleratorError", "OutOfMemoryError"})
"""Exceptions whose texts never quote a request; torch's by name, because this module does not import torch."""
_KINDS = 1000
"""Kinds of lines whose repetitions are counted at the same time."""


def configure(level: str, style: Literal["text", "json"], *, content: bool) -> None:
    """Send the log of this process to stderr: covervlm's and uvicorn's from `level` on, other packages' warnings.

    `content` shows the texts of all exceptions, which may quote what a caller sent.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(content) if style == "json" else TextLines(content))
    handler.addFilter(_add_request_id)
    handler.addFilter(Repetitions())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    if style == "json":
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of packages that load models would break the lines
    for name in ("covervlm", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


class Repetitions(logging.Filter):
    """Leaves out warnings and errors that repeat; the next one of the kind that is written says how many were left out.

    `most` of a kind are written in `seconds`. The lines of requests are never left out.
    """

    def __init__(self, most: int = 10, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or hasattr(record, "fields"):
            return True
        kind, now = (record.name, str(record.msg)), self._clock()
        begun, seen = self._seen.get(kind, (now, 0))
        if now - begun >= self._seconds:
            if seen > self._most:
                record.msg = f"{record.msg} ({seen - self._most} more lines like this were left out)"
            begun, seen = now, 0
        if len(self._seen) >= _KINDS:
            self._seen.clear()
        self._seen[kind] = (begun, seen + 1)
        return seen < self._most


class _Lines(logging.Formatter):
    def __init__(self, content: bool) -> None:
        super().__init__()
        self._content = content


class TextLines(_Lines):
    """LEVEL logger: message name=value ..., then the exception, if any, on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        message = record.getMessage()
        if fields.get("request_id", "") in message:
            fields.pop("request_id", None)
        pairs = [f"{name}={_plain(value)}" for name, value in fields.items()]
        lines = [" ".join([f"{record.levelname}:".ljust(9) + f"{record.name}: {message}", *pairs])]
        if record.exc_info and record.exc_info[1]:
            lines.append(exception_text(record.exc_info[1], content=self._content))
        return "\n".join(lines)


class JsonLines(_Lines):
    """One JSON object a line: time, level, logger, message, the line's own fields, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info and record.exc_info[1]:
            line["exception"] = exception_text(record.exc_info[1], content=self._content)
        return json.dumps(line, default=str)


def exception_text(error: BaseException, *, content: bool) -> str:
    """The traceback; without `content`, texts that may quote a request are left out, and only types and places stay."""
    if content:
        return "".join(traceback.format_exception(error)).rstrip()
    parts = []
    following: BaseException | None = error
    while following is not None:
        places = "".join(traceback.format_tb(following.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{places}{_headline(following)}")
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return "\n\nand then:\n\n".join(reversed(parts))


def _headline(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, _HARMLESS_KINDS) or kind.__name__ in _HARMLESS_NAMES:
        return f"{name}: {error}"
    return f"{name} (its text may quote a request; --log-content shows it)"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    current = getattr(record, "request_id", "")
    return {"request_id": current, **fields} if current else dict(fields)


def _plain(value: Any) -> str:
    """The value as one word; one with spaces, quotes or control characters is written as JSON."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)
