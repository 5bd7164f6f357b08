"""Image parts of a request to checked RGB images, wherever they come from, within limits on bytes and pixels."""

import asyncio
import base64
import binascii
import hashlib
import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from PIL import Image, ImageOps

from covervlm.server.access import charge_image, current_caller
from covervlm.server.engines.base import EngineOverloaded, ImagePart, InvalidRequest
from covervlm.server.fairness import FairTurns
from covervlm.server.inflight import hold
from covervlm.server.media.fetch import Fetcher
from covervlm.server.media.files import read_media_file

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
Part = TypeVar("Part")
Arguments = TypeVarTuple("Arguments")
_SCHEME = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]*):")
_WHITESPACE = str.maketrans("", "", " \t\r\n")


@dataclass(frozen=True)
class ImageLimits:
    """Largest encoded size in bytes and most pixels (width times height) of one image."""

    max_bytes: int
    max_pixels: int


class ImageLoader:
    """Decodes images in a few threads of its own, so that neither the event loop nor memory suffers from a rush.

    Callers take turns, image by image.

    fetch: gets images behind http(s) URLs. folder: where images at file URLs may lie. Without them, these are refused.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        threads: int,
        max_pending: int,
        fetch: Fetcher | None = None,
        folder: Path | None = None,
    ) -> None:
        self.limits = limits
        self._fetch = fetch
        self._folder = folder
        self._max_pending = max_pending
        self._turns = FairTurns(threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="media")

    async def load(self, url: str, *, param: str) -> ImagePart:
        """The image of an `image_url` part; `param` is the part's place in the request, for the error.

        Raises InvalidRequest for what is no acceptable image, EngineOverloaded with too many images waiting.
        """
        part = await self._load(url, param)
        hold(3 * part.image.width * part.image.height)
        return part

    async def _load(self, url: str, param: str) -> ImagePart:
        charge_image()
        scheme = url_scheme(url)
        if scheme in ("http", "https") and self._fetch is not None:
            try:
                data = await self._fetch(url.strip(), self.limits.max_bytes)
            except InvalidRequest as error:
                error.param = param
                raise
            return await self.run(image_part, data, self.limits, param=param)
        if scheme == "file" and self._folder is not None:
            return await self.run(_load_file, url.strip(), self._folder, self.limits, param=param)
        return await self.run(_load_data, url, self.limits, param=param)

    async def run(self, decode: Callable[[*Arguments], Part], *args: *Arguments, param: str) -> Part:
        """`decode(*args)` in one of the threads; raises as `load` does."""
        if len(self._turns) >= self._max_pending:
            raise EngineOverloaded("Too many images are waiting to be decoded; try again shortly.", retry_after=1)
        try:
            async with self._turns.turn(current_caller()):
                return await asyncio.get_running_loop().run_in_executor(self._pool, decode, *args)
        except InvalidRequest as error:
            error.param = param
            raise

    async def close(self) -> None:
        """Drop images that still wait; running threads end on their own."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._fetch is not None:
            await self._fetch.aclose()


def _load_data(url: str, limits: ImageLimits) -> ImagePart:
    return image_part(image_bytes(url, limits), limits)


def _load_file(url: str, folder: Path, limits: ImageLimits) -> ImagePart:
    return image_part(read_media_file(url, folder, limits.max_bytes), limits)


def url_scheme(url: str) -> str:
    """The lower-case scheme that a URL starts with, after white space; "" for bare base64."""
    scheme = _SCHEME.match(url)
    return scheme[1].lower() if scheme else ""


def image_part(data: bytes, limits: ImageLimits) -> ImagePart:
    """Encoded bytes to the image that an engine takes. Raises InvalidRequest."""
    image = decode_image(data, limits)
    return ImagePart(image, image_digest(image))


def image_bytes(url: str, limits: ImageLimits) -> bytes:
    """The encoded image inside a base64 data URL or bare base64; its size is checked before anything is decoded."""
    encoded = url
    if name := url_scheme(url):
        if name in ("http", "https"):
            raise _invalid(
                "This server does not fetch images; send the image itself as a data URL: "
                "data:image/png;base64,... with the file's base64."
            )
        if name != "data":
            raise _invalid(f"Images come as data URLs (data:image/png;base64,...), not as {name[:20]!r} URLs.")
        header, comma, encoded = url.partition(":")[2].partition(",")
        media_type, *parameters = [field.strip().lower() for field in header.split(";")]
        if not comma or "base64" not in parameters:
            raise _invalid("The data URL must have the form data:image/png;base64,... with the file's base64.")
        if media_type and not media_type.startswith("image/"):
            raise _invalid("The data URL's media type is not an image type such as image/png.")
    return decode_base64(encoded, limits.max_bytes)


def decode_base64(encoded: str, max_bytes: int) -> bytes:
    """An encoded image out of base64, which may hold white space; its size is checked before and after."""
    encoded = encoded.translate(_WHITESPACE)
    if not encoded:
        raise _invalid("The image is empty.")
    if len(encoded) // 4 * 3 > max_bytes + 2:
        raise _too_large(max_bytes, "bytes")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("The image is not valid base64.") from None
    if len(data) > max_bytes:
        raise _too_large(max_bytes, "bytes")
    return data


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Encoded bytes to an RGB image: upright by its EXIF orientation, first frame, transparency over white.

    Format and pixel count are checked from the header, before pixels are decoded. Raises InvalidRequest.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.width, image.height, limits)
            image.load()
            return _to_rgb(_upright(image))
    except (InvalidRequest, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(limits.max_pixels, "pixels") from None
    except Image.UnidentifiedImageError:
        raise _invalid(f"The data is not an image in one of the formats {', '.join(FORMATS)}.") from None
    except Exception:
        # Decoders answer broken files with OSError, SyntaxError, ValueError, struct.error and more.
        raise _invalid("The image is damaged or cut off and could not be decoded.") from None


def image_digest(image: Image.Image) -> str:
    """SHA-256 of an RGB image's size and pixels, in hex."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise _invalid("The image is empty.")
    if width * height > limits.max_pixels:
        raise _too_large(limits.max_pixels, "pixels")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Broken EXIF says nothing about the pixels, which are fine.
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: convert() would clip the values to 255 instead of scaling them.
        return image.point(lambda value: value / 256, "L").convert("RGB")
    if image.has_transparency_data:
        over_white = Image.new("RGBA", image.size, "white")
        over_white.alpha_composite(image.convert("RGBA"))
        return over_white.convert("RGB")
    return image.convert("RGB")


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_image")


def _too_large(limit: int, unit: str) -> InvalidRequest:
    return InvalidRequest(
        f"The image has more than {limit} {unit}, the most this server takes.", code="image_too_large"
    )
