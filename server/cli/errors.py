"""How a command fails: in one line, and with an exit status that tells a mistake in its use from a failure."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class CommandError(Exception):
    """Ends the command: one line for stderr, and the process's exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def file_errors(path: Path | None) -> Iterator[None]:
    """Turns what reading or writing a file raises into a CommandError that names the file."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from None


@contextmanager
def startup_errors() -> Iterator[None]:
    """Turns settings that are wrong, and a model that does not load, into a CommandError."""
    # Imported here, because where only the client is installed there is no pydantic.
    from pydantic import ValidationError

    from covervlm.server.engines.registry import StartupError
    from covervlm.server.settings import SettingsError, one_line

    try:
        yield
    except ValidationError as error:
        raise CommandError(one_line(error), USAGE) from None
    except SettingsError as error:
        raise CommandError(str(error), USAGE) from None
    except StartupError as error:
        raise CommandError(str(error)) from None
