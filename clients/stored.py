"""Calls about named things that a server keeps in versions, such as classifiers and projections."""

import os
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import quote

from covervlm.clients.calls import Call
from covervlm.clients.records import Record

Kept = TypeVar("Kept", bound=Record)


class Stored(Generic[Kept]):
    """Those below one path. `name` is the newest version of a name, and `name@version` that version."""

    def __init__(self, path: str, record: type[Kept]) -> None:
        self._path = path
        self._record = record

    def get(self, name: str) -> Call[Kept]:
        """The newest version of `name`, or that of `name@version`."""
        return Call("GET", self._place(name), self._record.read)

    def list_all(self) -> Call[list[Kept]]:
        """Every version of all that this API key has, oldest first, without their reports."""
        return Call("GET", self._path, self._record.read_list)

    def delete(self, name: str) -> Call[None]:
        """Delete all versions of `name`, or that of `name@version`."""
        return Call("DELETE", self._place(name), lambda body: None)

    def download(self, name: str) -> Call[bytes]:
        """It as the bytes of a safetensors file."""
        return Call("GET", f"{self._place(name)}/file", bytes, binary=True)

    def upload(self, name: str, file: bytes | str | os.PathLike[str]) -> Call[Kept]:
        """Store what `download` gave, from its bytes or the path of its file, as the next version of a name."""
        content = file if isinstance(file, bytes) else Path(file).read_bytes()
        return Call("PUT", f"{self._place(name)}/file", self._record.read, content=content, repeatable=False)

    def _place(self, name: str) -> str:
        return f"{self._path}/{quote(name, safe='')}"
