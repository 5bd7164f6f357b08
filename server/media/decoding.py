"""Encoded bytes to checked RGB pixels; what that costs is known before a pixel is decoded."""

import hashlib
import io
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageOps

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import ImagePart
from covervlm.server.media.containers import scans
from covervlm.server.media.kinds import IMAGE
from covervlm.server.media.video_container import container

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
BYTES_PER_PIXEL = 4
"""Of an RGB image in Pillow's memory."""
_PASSES = 16
"""How many times the most pixels of an image a JPEG's scans may cover together; encoders write about ten scans."""
Image.core.set_block_size(64 * 2**20)
# Pillow has the pixels' memory zeroed while it keeps all threads waiting, 100 ms for 49 megapixels. Blocks as large as
# these come from the system, which zeroes them page by page when they are written, while others may go on.
_STRIP = 2**20
"""Pixels that are converted or hashed at a time, so that there is never a second copy of them all."""


@dataclass(frozen=True)
class ImageLimits:
    """Largest encoded size in bytes and most pixels (width times height) of one image."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image of which only the header has been read."""

    image: Image.Image
    limits: ImageLimits
    scans: int

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    @property
    def decoding_bytes(self) -> int:
        """Memory that decoding takes beside the pixels, as measured.

        libwebp keeps three canvases, libjpeg all coefficients where there are several scans.
        """
        each = 0
        if self.image.format == "WEBP":
            each = 3 * BYTES_PER_PIXEL
        elif self.scans > 1:
            each = 2 * len(self.image.getbands())
        if self.image.mode != "RGB" or self.image.format in ("JPEG", "WEBP"):
            each = max(each, BYTES_PER_PIXEL)  # converted, or turned upright
        return each * self.width * self.height

    def part(self) -> ImagePart:
        """The image that an engine takes. Raises InvalidRequest."""
        image = self.decoded()
        return ImagePart(image, image_digest(image))

    def decoded(self) -> Image.Image:
        """RGB, upright by its EXIF orientation, first frame, transparency over white. Raises InvalidRequest."""
        try:
            with self.image as image:
                image.load()
                _turn_upright(image)
                return _to_rgb(image)
        except MemoryError:
            raise
        except Exception as error:
            raise _refusal(error, self.limits) from None


def open_image(data: bytes, limits: ImageLimits) -> Encoded:
    """Format, pixel count and passes over them, checked from the order of the file's parts. Raises InvalidRequest."""
    passes = scans(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        video = container(data) not in (None, "gif")
        instead = "a chat takes a video in a 'video_url' part" if video else "convert it to one of them"
        formats = ", ".join(FORMATS)
        raise IMAGE.invalid(f"The data is not an image in one of the formats {formats}; {instead}.") from None
    except MemoryError:
        raise
    except Exception as error:
        raise _refusal(error, limits) from None
    if image.width < 1 or image.height < 1:
        raise IMAGE.invalid("The image is empty.")
    if image.width * image.height > limits.max_pixels:
        raise IMAGE.too_large(limits.max_pixels, "pixels")
    if passes * image.width * image.height > _PASSES * limits.max_pixels:
        raise InvalidRequest(
            f"The JPEG has {passes} scans of {image.width} x {image.height} pixels, more than this server decodes for "
            "an image of this size; save it as a baseline JPEG.",
            code="image_too_large",
        )
    return Encoded(image, limits, passes)


def image_digest(image: Image.Image) -> str:
    """SHA-256 of an RGB image's size and pixels, in hex."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    for box in _strips(image.width, image.height):
        digest.update(image.crop(box).tobytes())
    return digest.hexdigest()


def _turn_upright(image: Image.Image) -> None:
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:
        # Broken EXIF says nothing about the pixels, which are fine.
        return


def _to_rgb(image: Image.Image) -> Image.Image:
    """Pixels alone, without the file's decoder and metadata, which may be many times as large."""
    if image.mode == "RGB" and not image.has_transparency_data:
        bare = image._new(image.im)  # as Pillow does internally: the same pixels, not copied
        bare.info = {}
        return bare
    rgb = Image.new("RGB", image.size)
    for box in _strips(image.width, image.height):
        rgb.paste(_opaque(image.crop(box)), box)
    return rgb


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: convert() would clip the values to 255 instead of scaling them.
        return image.point(lambda value: value / 256, "L").convert("RGB")
    if image.has_transparency_data:
        over_white = Image.new("RGBA", image.size, "white")
        over_white.alpha_composite(image.convert("RGBA"))
        return over_white.convert("RGB")
    return image.convert("RGB")


def _strips(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Boxes over whole rows, or over parts of them where a single one is too long."""
    rows = max(1, _STRIP // width)
    columns = min(width, _STRIP)
    return [
        (left, top, min(width, left + columns), min(height, top + rows))
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]


def _refusal(error: Exception, limits: ImageLimits) -> InvalidRequest:
    """Decoders answer broken files with OSError, SyntaxError, ValueError, struct.error and more."""
    if isinstance(error, InvalidRequest):
        return error
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return IMAGE.too_large(limits.max_pixels, "pixels")
    return IMAGE.invalid(
        "The image is damaged or cut off and could not be decoded; send the whole file, or save it anew."
    )
