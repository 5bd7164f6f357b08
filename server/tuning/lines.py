"""A file of results that survives whatever ends the program, and from which the next run goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Lines:
    """JSON objects, one a line, each written to disk as soon as it is added. Raises OSError.

    found: the whole lines that were there; what follows the last of them was cut off when a program was killed.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab+", buffering=0)
        self._file.seek(0)
        data = self._file.read()
        end = data.rfind(b"\n") + 1
        self._file.truncate(end)
        self.found = data[:end].splitlines()

    def add(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")

    def close(self) -> None:
        self._file.close()
