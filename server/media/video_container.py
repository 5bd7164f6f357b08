"""Which kind of video file some bytes are."""

_MOV = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def container(data: bytes) -> str | None:
    """FFmpeg's name of the container, by its first bytes; None for what is no video."""
    if data[4:8] in _MOV:
        return "mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    return None
