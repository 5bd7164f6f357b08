"""The process's log, for people or as JSON lines; what callers send shows in it only where the operator asks for it."""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Literal

from covervlm.server.engines.base import EngineError

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that is being answered, for every line that is written on its way."""

_SAYS_NOTHING_OF_REQUESTS = (EngineError, ImportError, MemoryError, OSError)
_SAY_NOTHING_OF_REQUESTS = frozenset({"AcceleratorError", "OutOfMemoryError"})
"""torch's, by name: this module does not import torch."""


def configure(level: str, style: Literal["text", "json"], *, content: bool) -> None:
    """Send the log of this process to stderr: covervlm's and uvicorn's from `level` on, other packages' warnings.

    `content` shows the texts of all exceptions, which may quote what a caller sent.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(content) if style == "json" else TextLines(content))
    handler.addFilter(_add_request_id)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    if style == "json":
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of packages that load models are no lines
    for name in ("covervlm", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


class TextLines(logging.Formatter):
    """LEVEL logger: message name=value ..., then the exception, if any, on lines of its own."""

    def __init__(self, content: bool) -> None:
        super().__init__()
        self._content = content

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


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the line's own fields, and `exception`."""

    def __init__(self, content: bool) -> None:
        super().__init__()
        self._content = content

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
    if isinstance(error, _SAYS_NOTHING_OF_REQUESTS) or kind.__name__ in _SAY_NOTHING_OF_REQUESTS:
        return f"{name}: {error}"
    return f"{name} (its text may quote a request; --log-content shows it)"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    current = getattr(record, "request_id", "")
    return {"request_id": current, **fields} if current else dict(fields)


def _plain(value: Any) -> str:
    """A value that stays one word: what has spaces, quotes or control characters is written as JSON."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)
