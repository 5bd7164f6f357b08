"""Log lines as people and machines read them, and what of an exception they show."""

import io
import json
import logging
import sys
from datetime import datetime

import pytest

from covervlm.server.core.errors import EngineError
from covervlm.server.telemetry import logs


@pytest.fixture
def configured(root_handlers, monkeypatch):
    """Configures the log and returns what it then writes."""

    def configure(style, *, level="info", content=False):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        logs.configure(level, style, content=content)
        return stream

    return configure


SECRET = "what is in my picture"


def failing():
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise ValueError(f"cannot read {SECRET}") from error


def test_a_json_line_is_one_object_with_time_level_logger_message_and_fields(configured):
    stream = configured("json")
    logging.getLogger("covervlm.request").info("two\nlines", extra={"fields": {"status": 200, "seconds": 0.25}})
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert datetime.fromisoformat(entry.pop("time")).tzinfo is not None
    assert entry == {
        "level": "info",
        "logger": "covervlm.request",
        "message": "two\nlines",
        "status": 200,
        "seconds": 0.25,
    }


def test_a_text_line_has_its_fields_as_words(configured):
    stream = configured("text")
    logging.getLogger("covervlm.request").warning("request", extra={"fields": {"a": 1, "b": "two words", "c": 'x"=y'}})
    assert stream.getvalue() == 'WARNING: covervlm.request: request a=1 b="two words" c="x\\"=y"\n'


def test_text_cannot_forge_a_second_line(configured):
    stream = configured("text")
    logging.getLogger("covervlm").info("request", extra={"fields": {"error": "x\nERROR: covervlm: forged"}})
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("style", ["text", "json"])
def test_lines_on_a_requests_way_carry_its_id_once(configured, style):
    stream = configured(style)
    token = logs.request_id.set("r7")
    try:
        logging.getLogger("covervlm.agent").warning("goes on without its agent")
        logging.getLogger("covervlm.api").error("request r7 failed")
    finally:
        logs.request_id.reset(token)
    logging.getLogger("covervlm").info("elsewhere")
    first, second, third = stream.getvalue().splitlines()
    assert "r7" in first
    assert "r7" not in third
    if style == "json":
        assert json.loads(second)["request_id"] == "r7"
    else:
        assert second.count("r7") == 1


def test_levels_apply_to_covervlm_and_uvicorn_and_others_only_warn(configured):
    stream = configured("text", level="debug")
    for name in ("covervlm.engine", "uvicorn.part", "httpx"):
        logging.getLogger(name).debug("detail of %s", name)
    logging.getLogger("httpx").warning("trouble")
    assert [line.split(maxsplit=1)[1] for line in stream.getvalue().splitlines()] == [
        "covervlm.engine: detail of covervlm.engine",
        "uvicorn.part: detail of uvicorn.part",
        "httpx: trouble",
    ]


@pytest.mark.parametrize("style", ["text", "json"])
def test_an_exceptions_text_is_withheld_and_its_type_and_place_are_not(configured, style):
    stream = configured(style)
    try:
        failing()
    except ValueError:
        logging.getLogger("covervlm").exception("a step failed")
    text = stream.getvalue()
    assert SECRET not in text
    assert "KeyError (" in text
    assert "ValueError (" in text
    assert "in failing" in text
    assert text.index("KeyError (") < text.index("ValueError (")


def test_with_content_a_traceback_is_pythons_own(configured):
    stream = configured("text", content=True)
    try:
        failing()
    except ValueError:
        logging.getLogger("covervlm").exception("a step failed")
    assert f"ValueError: cannot read {SECRET}" in stream.getvalue()
    assert f"KeyError: '{SECRET}'" in stream.getvalue()


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        EngineError("The engine failed."),
        MemoryError("no room"),
        OutOfMemoryError("Tried to allocate 2.00 GiB"),
    ],
)
def test_errors_that_tell_of_the_machine_keep_their_texts(error):
    assert logs.exception_text(error, content=False).endswith(f"{type(error).__name__}: {error}")


def test_lines_that_repeat_are_left_out_and_counted():
    now = 0.0
    repetitions = logs.Repetitions(most=3, seconds=10, clock=lambda: now)

    def passes(message, level=logging.ERROR, **extra):
        record = logging.LogRecord("asyncio", level, __file__, 1, message, (), None)
        record.__dict__.update(extra)
        return record.getMessage() if repetitions.filter(record) else None

    lines = [passes("no file can be opened") for _ in range(1000)]
    assert lines == ["no file can be opened"] * 3 + [None] * 997
    assert passes("something else") == "something else"
    assert [passes("as usual", logging.INFO) for _ in range(9)] == ["as usual"] * 9
    assert [passes("request", fields={"status": 500}) for _ in range(9)] == ["request"] * 9
    now = 10.0
    assert passes("no file can be opened") == "no file can be opened (997 more lines like this were left out)"
    assert passes("no file can be opened") == "no file can be opened"
