"""Every kind of image source becomes the data URL of the same picture."""

import base64
import io

import numpy
import pytest
from PIL import Image

from covervlm.clients.conversations import user
from covervlm.clients.images import data_url, pil_image, sources


@pytest.fixture(scope="module")
def noise():
    return numpy.random.default_rng(7).integers(0, 256, (6, 9, 3), dtype=numpy.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(url):
    header, _, payload = url.partition(",")
    return header, Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_files_go_as_they_are_under_their_own_media_type(noise, tmp_path, kind):
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "picture.of.any.name"
    path.write_bytes(data)
    expected = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    assert data_url(path) == data_url(str(path)) == data_url(data) == data_url(bytearray(data)) == expected


def test_unknown_data_is_left_to_the_server_to_judge():
    assert data_url(b"hello") == "data:;base64,aGVsbG8="


def test_urls_stay_what_they_are():
    for url in ("data:image/png;base64,AAAA", "http://host/a.png", "HTTPS://host/a.png"):
        assert data_url(url) == url


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        data_url(tmp_path / "none.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_pil_images_of_every_mode_arrive(noise, mode):
    image = (
        Image.fromarray(noise).convert("L").convert("I;16") if mode == "I;16" else Image.fromarray(noise).convert(mode)
    )
    header, arrived = decoded(data_url(image))
    assert header == "data:image/png;base64"
    assert arrived.size == (9, 6)
    if mode not in ("CMYK", "YCbCr"):
        assert arrived.mode == mode
        assert arrived.tobytes() == image.tobytes()


def test_pil_images_arrive_upright(noise):
    exif = Image.Exif()
    exif[274] = 6  # the camera was held a quarter turn to the left
    turned = Image.open(io.BytesIO(encoded(Image.fromarray(noise), "PNG", exif=exif)))
    _, arrived = decoded(data_url(turned))
    assert numpy.array_equal(numpy.asarray(arrived), numpy.rot90(noise, -1))


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3), (6, 9, 4)])
def test_uint8_arrays_arrive_to_the_bit(shape):
    array = numpy.random.default_rng(1).integers(0, 256, shape, dtype=numpy.uint8)
    _, arrived = decoded(data_url(array))
    assert numpy.array_equal(numpy.asarray(arrived), array)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_float_arrays_are_scaled(noise, kind):
    _, arrived = decoded(data_url((noise / 255).astype(kind)))
    assert numpy.array_equal(numpy.asarray(arrived), noise)


@pytest.mark.parametrize(
    "array",
    [
        numpy.zeros((3, 6, 9), "uint8"),
        numpy.zeros(4, "uint8"),
        numpy.zeros((0, 4), "uint8"),
        numpy.zeros((4, 4), "int64"),
        numpy.full((4, 4), 1.5),
        numpy.full((4, 4), numpy.nan),
    ],
)
def test_arrays_that_are_no_image_are_refused(array):
    with pytest.raises(ValueError, match="array"):
        data_url(array)


@pytest.mark.parametrize("thing", [7, object(), {"url": "x"}])
def test_other_things_are_refused(thing):
    with pytest.raises(TypeError, match="an image is a path"):
        data_url(thing)


def test_sources_are_taken_apart_and_put_before_the_question(noise):
    assert sources(None) == []
    assert len(sources([b"a", b"b"])) == 2
    content = user("What?", b"a", noise)["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    assert user("Hello")["content"] == [{"type": "text", "text": "Hello"}]
    assert [part["type"] for part in user("", noise)["content"]] == ["image_url"]


def test_all_sources_decode_to_one_picture(noise, tmp_path):
    image = Image.fromarray(noise)
    path = tmp_path / "a.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), data_url(path), image, noise):
        assert numpy.array_equal(numpy.asarray(pil_image(source)), noise)
