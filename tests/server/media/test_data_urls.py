"""Images inside text: what browsers, SDKs and examples write is read, anything else refused with its reason."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media import data_urls
from covervlm.server.media.data_urls import decode_base64, media_bytes

MOST = 1_000_000
DATA = bytes(range(250, 256)) * 3  # both letters in which the URL-safe alphabet differs


def b64(data):
    return base64.b64encode(data).decode()


SPELLINGS = {
    "as in RFC 2397": "data:image/png;base64," + b64(DATA),
    "upper case": "DATA:IMAGE/PNG;BASE64," + b64(DATA),
    "a file name": "data:image/png;name=a.png;base64," + b64(DATA),
    "a character set": "data:image/png;charset=utf-8;base64," + b64(DATA),
    "blanks between the parameters": "data:image/png; charset=utf-8; base64," + b64(DATA),
    "a list of codecs in a parameter": "data:image/png;codecs=a,b;base64," + b64(DATA),
    "no media type": "data:;base64," + b64(DATA),
    "Qwen's examples": "data:image;base64," + b64(DATA),
    "a file whose type nobody knew": "data:application/octet-stream;base64," + b64(DATA),
    "bare base64": b64(DATA),
    "a line of its own": " \n" + b64(DATA) + "\n",
    "MIME's lines": "data:image/png;base64," + "\r\n".join(b64(DATA)[i : i + 5] for i in range(0, 24, 5)),
    "URL-safe": "data:image/png;base64," + base64.urlsafe_b64encode(DATA).decode(),
    "percent signs": "data:image/png;base64," + b64(DATA).replace("+", "%2B").replace("/", "%2f"),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_what_programs_write_is_read(kind):
    assert media_bytes(SPELLINGS[kind], MOST) == DATA


@given(data=st.binary(min_size=1, max_size=40), url_safe=st.booleans(), padded=st.sampled_from(["=", "%3D", "%3d", ""]))
def test_both_alphabets_are_read_with_padding_and_without(data, url_safe, padded):
    encoded = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(data).decode()
    assert decode_base64(encoded.replace("=", padded), 40) == data


@given(st.text(max_size=60) | st.text("ABab01+/-_= \n%", max_size=60))
def test_any_text_is_read_or_refused_in_words(text):
    answer = "The image was read."
    try:
        assert media_bytes(text, 40)
    except InvalidRequest as refused:
        answer = str(refused)
    assert answer.startswith(("The ", "This server", "Images come"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.com/a.png", "data URL"),
        ("HTTPS://example.com/a.png", "data URL"),
        ("file:///etc/passwd", "'file'"),
        ("ftp://example.com/a.png", "'ftp'"),
        ("javascript:alert(1)", "'javascript'"),
        ("data:image/png," + b64(b"abc"), "';base64'.* form"),
        ("data:image/png;base64", "comma.* form"),
        ("data:image/png,YWJjdata:;base64,YWJj", "';base64'.* form"),
        ("data:image/png;charset,YWJj;base64,YWJj", "';base64'.* form"),
        ("data:text/html;base64," + b64(b"abc"), "media type 'text/html'"),
        ("data:video/mp4;base64," + b64(b"abc"), "is no image type.*'video_url' part"),
        ("data:image/png;base64,", "empty"),
        ("", "empty"),
        ("data:image/png;base64,YWJjY", "cut off"),
        ("data:image/png;base64,YW=Jj", "padding"),
        ("data:image/png;base64,YWJjY===", "padding"),
        ("data:image/png;base64,YWJj=", "padding"),
        ("images/cat.png", r"'\.' is character 11"),
        ("/home/me/cat.png", "data:image/png;base64,"),
        ("image/png;base64,YWJj", "';' is character 10"),
        ("not base64 é", "'é' is character 10"),
    ],
)
def test_other_urls_are_refused_and_say_why(url, words):
    with pytest.raises(InvalidRequest, match=words) as refused:
        media_bytes(url, MOST)
    assert refused.value.code == "invalid_image"


@pytest.mark.parametrize(("size", "fits"), [(9, True), (10, True), (11, False), (12, False), (1000, False)])
def test_encoded_bytes_are_counted(size, fits):
    if fits:
        assert len(media_bytes(b64(bytes(size)), 10)) == size
    else:
        with pytest.raises(InvalidRequest, match="more than 10 bytes"):
            media_bytes(b64(bytes(size)), 10)


def test_too_many_bytes_are_refused_before_base64_is_decoded(monkeypatch):
    def decoded(*_, **__):
        raise AssertionError("base64 was decoded")

    monkeypatch.setattr(data_urls.base64, "b64decode", decoded)
    with pytest.raises(InvalidRequest, match="more than 10 bytes"):
        media_bytes("A" * 1000, 10)


@pytest.mark.parametrize("lines", ["", "\r\n"])
def test_the_standard_library_which_keeps_other_threads_waiting_decodes_no_long_texts(monkeypatch, lines):
    data = bytes(range(256)) * 8192
    encoded, lengths = b64(data), []
    text = lines.join(encoded[i : i + 76] for i in range(0, len(encoded), 76))
    decode = base64.b64decode

    def counted(piece, **options):
        lengths.append(len(piece))
        return decode(piece, **options)

    monkeypatch.setattr(data_urls.base64, "b64decode", counted)
    assert decode_base64(text, 2**22) == data
    assert sum(lengths) < len(encoded) / 4


@pytest.mark.parametrize("length", [*range(1, 30), 3 * 8, 3 * 8 + 1])
@pytest.mark.parametrize("damage", [None, (4, "="), (7, "="), (8, "="), (-1, "="), (0, "="), (9, "*"), (12, "é")])
def test_base64_in_pieces_is_what_it_is_in_one(monkeypatch, length, damage):
    monkeypatch.setattr(data_urls, "PIECE", 8)
    text = list(b64(bytes(range(length))))
    if damage is not None and damage[0] < len(text):
        text[damage[0]] = damage[1]
    text = "".join(text)
    try:
        expected = base64.b64decode(text if "=" in text else text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        with pytest.raises(InvalidRequest, match="valid base64"):
            decode_base64(text, 1000)
    else:
        assert decode_base64(text, 1000) == expected


@given(
    data=st.binary(min_size=1, max_size=40),
    spelling=st.sampled_from(["%2B", "%2b", "+"]),
    gaps=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["\n", " ", "%0A", "\r\n"])), max_size=6),
    piece=st.integers(4, 20),
)
def test_no_piece_tears_what_it_is_made_of(data, spelling, gaps, piece):
    """Blanks and percent signs anywhere, and pieces of any length; the start is a place within a longer text."""
    text = [character if character != "+" else spelling for character in b64(data).replace("=", "%3D")]
    for place, gap in gaps:
        text.insert(min(place, len(text)), gap) if "%3D" not in "".join(text)[: 3 * place] else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_urls, "PIECE", piece)
        assert decode_base64("data:," + "".join(text), 40, 6) == data
