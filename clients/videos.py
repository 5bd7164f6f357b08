"""A clip in a question: a video file, or the pictures that are its frames, as a part of a message."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from covervlm.clients.images import data_url, image_part, is_remote

if TYPE_CHECKING:
    from covervlm.clients.images import ImageSource

    Medium: TypeAlias = "ImageSource | Video"
else:
    Medium: TypeAlias = Any

Media: TypeAlias = "Medium | Sequence[Medium] | None"
"""One image or clip, several, or none."""


@dataclass(frozen=True)
class Video:
    """A clip, wherever a question takes an image.

    source: a video file as a path, an http(s) or data URL or bytes, or a list of images of one size, which are the
    frames. The server fetches what is at a URL, and may refuse to. fps: how many frames to a second are taken of a
    file, or a list has; None leaves it to the server.
    """

    source: "ImageSource | Sequence[ImageSource]"
    fps: float | None = None

    def part(self) -> dict[str, Any]:
        """The clip as vLLM's API spells it.

        Raises OSError for files that cannot be read, ValueError for an empty list and for a frame at an http(s) URL,
        TypeError for what is neither an image nor a file.
        """
        frames: Any = self.source
        url = _listed(frames) if isinstance(frames, list | tuple) else data_url(frames)
        return {"type": "video_url", "video_url": {"url": url} | ({} if self.fps is None else {"fps": self.fps})}


def media_part(medium: Medium) -> dict[str, Any]:
    """An image or a clip as a part of a message."""
    return medium.part() if isinstance(medium, Video) else image_part(medium)


def _listed(frames: "Sequence[ImageSource]") -> str:
    if not frames:
        raise ValueError("a clip has at least one frame")
    if any(is_remote(frame) for frame in frames):
        raise ValueError("the frames of a clip are no http(s) URLs; fetch them, and give their bytes")
    return "data:video/jpeg;base64," + ",".join(data_url(frame).partition(",")[2] for frame in frames)
