"""Base64 decoded in pieces is what the standard library makes of it in one."""

import base64
import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covervlm.server.core import base64_pieces
from covervlm.server.core.base64_pieces import PIECE, decoded_piece, decoded_text

strict = functools.partial(base64.b64decode, validate=True)


def result_of(decode, text):
    """None for what is refused."""
    try:
        return decode(text)
    except ValueError:
        return None


@pytest.mark.parametrize("length", [*range(30), 30 * 8])
@pytest.mark.parametrize(
    "damage", [None, (4, "="), (7, "="), (8, "="), (-1, "="), (0, "="), (9, "*"), (12, "é"), (-1, "")]
)
def test_a_text_in_pieces_is_what_it_is_in_one(monkeypatch, length, damage):
    monkeypatch.setattr(base64_pieces, "PIECE", 8)
    text = list(base64.b64encode(bytes(range(length))).decode())
    if text and damage is not None and damage[0] < len(text):
        text[damage[0]] = damage[1]
    text = "".join(text)
    assert result_of(decoded_text, text) == result_of(strict, text)


@given(text=st.text(alphabet="AZaz09+/=*é", max_size=40))
def test_what_is_no_base64_is_none_in_pieces_either(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base64_pieces, "PIECE", 8)
        assert result_of(decoded_text, text) == result_of(strict, text)


@given(data=st.binary(min_size=3, max_size=99))
def test_numpy_decodes_a_piece_as_the_standard_library_does(data):
    data = data[: len(data) // 3 * 3]
    assert decoded_piece(base64.b64encode(data).decode()) == data


def test_the_standard_library_which_keeps_other_threads_waiting_decodes_no_long_texts(monkeypatch):
    data = bytes(range(256)) * 8192
    text, lengths, decode = base64.b64encode(data).decode(), [], base64.b64decode

    def counted(piece, **options):
        lengths.append(len(piece))
        return decode(piece, **options)

    monkeypatch.setattr(base64_pieces.base64, "b64decode", counted)
    assert decoded_text(text) == data
    assert sum(lengths) <= PIECE
