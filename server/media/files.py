"""Images and videos in files on the server, under the one folder that the operator opened to callers."""

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.kinds import IMAGE, Kind


def read_media_file(url: str, folder: Path, max_bytes: int, kind: Kind = IMAGE) -> bytes:
    """The bytes of a file:///... URL below `folder`, whose symbolic links and .. are resolved before that is checked.

    Raises InvalidRequest; what is outside looks to the caller like what does not exist.
    """
    try:
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise _missing(kind)
        path = Path(unquote(parts.path, errors="strict")).resolve(strict=True)
        if not path.is_relative_to(folder.resolve(strict=True)):
            raise _missing(kind)
        # Opening a pipe must not wait for its writer, nor follow a link that has replaced the file since.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _missing(kind)
            data = file.read(max_bytes + 1)
    except (OSError, ValueError, RuntimeError):
        raise _missing(kind) from None
    if len(data) > max_bytes:
        raise kind.too_large(max_bytes, "bytes")
    return data


def _missing(kind: Kind) -> InvalidRequest:
    return kind.invalid_url("There is no such file in the folder that this server reads from.")
