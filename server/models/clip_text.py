"""What a prompt says of a clip where its chat template has but a placeholder: what transformers' processors say."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import VideoPart

NO_VIDEOS = "This model reads images, not videos; send frames as separate images."


@dataclass(frozen=True)
class ClipText:
    """placeholder: the chat template's for a clip.

    moments: of a number of frames and how many there are to a second, the texts in its place, a placeholder in each.
    """

    placeholder: str
    moments: Callable[[int, float], Iterable[str]]

    def told(self, text: str, clips: Sequence[VideoPart]) -> tuple[str, int]:
        """A chat's text with its clips spelled, and how many placeholders more it has than before.

        Texts are joined before they become tokens, since a token may reach across. Raises InvalidRequest where the
        chat template has no place for clips.
        """
        first, *rest = text.split(self.placeholder)
        if len(rest) != len(clips):
            raise InvalidRequest(NO_VIDEOS, param="messages")
        moments = [list(self.moments(len(clip.frames), clip.fps)) for clip in clips]
        told = ["".join(own) + after for own, after in zip(moments, rest, strict=True)]
        return first + "".join(told), sum(map(len, moments)) - len(clips)
