"""Images and videos in the words and codes of what is wrong with them."""

from dataclasses import dataclass

from covervlm.server.core.errors import InvalidRequest


@dataclass(frozen=True)
class Kind:
    """What a part of a request holds. form: how it is sent in a data URL. types: media types that this may name.

    A type that ends with a slash stands for all that begin with it.
    """

    name: str
    form: str
    example: str
    types: tuple[str, ...]

    def takes(self, media_type: str) -> bool:
        """Whether a data URL with this media type, in lower case, may hold one."""
        return any(media_type == known or (known[-1:] == "/" and media_type.startswith(known)) for known in self.types)

    def invalid(self, message: str) -> InvalidRequest:
        return InvalidRequest(message, code=f"invalid_{self.name}")

    def invalid_url(self, message: str) -> InvalidRequest:
        return InvalidRequest(message, code=f"invalid_{self.name}_url")

    def too_large(self, limit: int, unit: str) -> InvalidRequest:
        message = f"The {self.name} has more than {limit} {unit}, the most this server takes; send a smaller one."
        return InvalidRequest(message, code=f"{self.name}_too_large")


_ANY = ("", "application/octet-stream")
IMAGE = Kind("image", "data:image/png;base64,... with the file's base64", "image/png", (*_ANY, "image", "image/"))
VIDEO = Kind(
    "video", "data:video/mp4;base64,... with the file's base64", "video/mp4", (*_ANY, "video", "video/", "image/gif")
)
