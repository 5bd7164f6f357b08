"""API keys, known to the server by their hashes only."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def hashed(key: str) -> str:
    """sha256:HEX of a key that a caller sent, even one that looks like a hash: hashes are not accepted as keys."""
    return f"sha256:{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}"


def configured(key: str) -> str:
    """sha256:HEX of a key that the operator set, which may be given in this form already."""
    return key if _HASH.fullmatch(key) else hashed(key)


def read_key_file(path: Path) -> list[str]:
    """Hashes from a file with one sha256:HEX a line, anything after it and lines that start with # being comments.

    Raises OSError, or ValueError for a line of another form.
    """
    hashes = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        entry = line.split(maxsplit=1)[:1]
        if not entry or entry[0].startswith("#"):
            continue
        if not _HASH.fullmatch(entry[0]):
            raise ValueError(f"line {number} does not start with sha256: and 64 hexadecimal digits")
        hashes.append(entry[0])
    return hashes


class Keys:
    """The accepted keys. A key's owner is what the server files its jobs, streams and cached images under."""

    def __init__(self, hashes: Iterable[str]) -> None:
        self._owners = {value: hashlib.sha256(f"owner {value}".encode()).hexdigest()[:32] for value in hashes}

    def __bool__(self) -> bool:
        return bool(self._owners)

    def owner(self, key: str) -> str | None:
        """The owner of a key, None for one that is not accepted; the time taken does not depend on the key."""
        given = hashed(key)
        found = None
        for value, owner in self._owners.items():
            if hmac.compare_digest(value, given):
                found = owner
        return found
