"""Turns whatever holds an image (file, URL, bytes, PIL image, numpy array) into the data URL that the server takes."""

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image

    ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image | numpy.ndarray[Any, Any]"
else:
    ImageSource: TypeAlias = Any

Images: TypeAlias = "ImageSource | Sequence[ImageSource] | None"
"""One image, several, or none."""

_SIGNATURES = ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"GIF8", "image/gif"), (b"BM", "image/bmp"))
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def sources(images: Any) -> list[Any]:
    """The images, or the clips among them, one by one."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def is_remote(source: ImageSource) -> bool:
    """Whether the source is an http(s) URL."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def data_url(source: ImageSource) -> str:
    """The image as a data URL: encoded files go as they are, pixels as PNG; an http(s) URL stays what it is.

    Arrays are (H, W), (H, W, 3) or (H, W, 4), uint8 or floats from 0 to 1.
    Raises OSError for files that cannot be read, TypeError and ValueError for what is not an image.
    """
    if isinstance(source, str) and (is_remote(source) or source[:5].lower() == "data:"):
        return source
    if isinstance(source, str | os.PathLike):
        source = Path(source).read_bytes()
    if isinstance(source, bytes | bytearray | memoryview):
        return _encode(bytes(source))
    return _encode(_png(pil_image(source)))


def image_part(source: ImageSource) -> dict[str, Any]:
    """The image as OpenAI's API spells it."""
    return {"type": "image_url", "image_url": {"url": data_url(source)}}


def image_parts(images: Images) -> list[dict[str, Any]]:
    return [image_part(image) for image in sources(images)]


def remote_images(body: Any) -> list[str]:
    """The http(s) URLs of image parts in a request's body, each once. The client fetches them: a server may not."""
    found: dict[str, None] = {}
    _replace(body, lambda url: found.setdefault(url))
    return list(found)


def with_images(body: Any, urls: Mapping[str, str]) -> Any:
    """The body with other URLs in place of the http(s) ones of its image parts."""
    return _replace(body, lambda url: urls[url])


def pil_image(source: Any) -> "Image":
    """The image, decoded and turned upright by its EXIF orientation, as the server sees it; not for http(s) URLs."""
    from PIL import Image, ImageOps

    if isinstance(source, str) and source[:5].lower() == "data:":
        source = base64.b64decode(source.partition(",")[2])
    if isinstance(source, bytes | bytearray | memoryview):
        source = io.BytesIO(source)
    if isinstance(source, str | os.PathLike | io.BytesIO):
        with Image.open(source) as image:
            return ImageOps.exif_transpose(image)
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source)
    if hasattr(source, "__array_interface__"):
        return _from_array(source)
    raise TypeError(
        f"an image is a path, URL, bytes, PIL image or numpy array, not {type(source).__name__}; "
        "several images are a list of these"
    )


def _from_array(array: Any) -> "Image":
    from PIL import Image

    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ValueError(f"an image array is (H, W), (H, W, 3) or (H, W, 4), not {tuple(array.shape)}")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError("an image array of floats holds values from 0 to 1")
        array = (array * 255).round().astype("uint8")
    if array.dtype.kind != "u" or array.dtype.itemsize != 1:
        raise ValueError(f"an image array is uint8 or floats from 0 to 1, not {array.dtype}")
    return Image.fromarray(array)


def _png(image: "Image") -> bytes:
    buffer = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def _encode(data: bytes) -> str:
    kinds = [kind for signature, kind in _SIGNATURES if data.startswith(signature)]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kinds = ["image/webp"]
    # The media type may be missing: the server looks at the data itself, and its refusal names the formats it takes.
    return f"data:{kinds[0] if kinds else ''};base64,{base64.b64encode(data).decode()}"


def _replace(body: Any, new_url: Callable[[str], Any]) -> Any:
    """A copy of a JSON value, in which every image part with an http(s) URL has what `new_url` makes of it."""
    if isinstance(body, list | tuple):
        return [_replace(item, new_url) for item in body]
    if not isinstance(body, Mapping):
        return body
    if body.get("type") == "image_url" and is_remote(body["image_url"]["url"]):
        return {**body, "image_url": {**body["image_url"], "url": new_url(body["image_url"]["url"])}}
    return {name: _replace(value, new_url) for name, value in body.items()}
