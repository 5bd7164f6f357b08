"""What JSON costs to parse is told from its bytes, whatever it is made of."""

import contextlib
import json
import time

import pytest
from pydantic_core import from_json

from covervlm.server.core.parsing import SMALL, takes_too_long

SIZE = 2**20
ITEMS = ["0,", "[],", "{},", '"a",', '{"a":0},', "\\ud83d\\ude00", "\\u0041", " ", "\n", "é", "漢", "9" * 4000 + ","]


def filled(item):
    """A list or a string of about SIZE bytes of one thing."""
    many = item * (SIZE // len(item.encode()))
    return (f'"{many}"' if item[0] in "\\é漢" else f"[{many}0]").encode()


@pytest.mark.usefixtures("spared")
@pytest.mark.parametrize("item", ITEMS)
def test_what_passes_for_a_tenth_of_a_second_is_parsed_in_a_few(item):
    """The longest of a kind that passes, as time of this thread's own."""
    text = filled(item)
    while takes_too_long(text, 0.1):
        text = text[: len(text) // 2]
    began = time.thread_time()
    with contextlib.suppress(ValueError):
        from_json(text)
    assert time.thread_time() - began < 0.3


@pytest.mark.usefixtures("spared")
@pytest.mark.parametrize("item", ["0,", "[],", '{"a":0},', "\\u0041"])
def test_more_of_it_is_told_at_once(item):
    text = filled(item) * 20
    began = time.thread_time()
    assert takes_too_long(text, 0.1)
    assert time.thread_time() - began < 0.1


def test_plain_text_and_what_is_small_pass():
    assert not takes_too_long(json.dumps({"url": "A" * 2**24}).encode(), 0.01)
    assert not takes_too_long(b"[" * (SMALL - 1), 0.0)


@pytest.mark.parametrize("mark", ["\\n", "é", "漢", "😀", '\\"', "\\\\"])
@pytest.mark.parametrize("at", [0, 0.3, 1])
def test_one_character_makes_a_long_string_dear(mark, at):
    """Wherever it stands: all that comes before it is copied, and what comes behind as well."""
    before = "A" * int(2**25 * at)
    text = f'{{"a": "short", "b": "{before}{mark}{"A" * (2**25 - len(before))}"}}'.encode()
    assert takes_too_long(text, 0.15)
    assert not takes_too_long(text, 0.3)


@pytest.mark.parametrize("mark", ["\\n", "é", "😀", '\\"', "\\\\", 'a \\"quoted\\" \\\\'])
def test_long_strings_beside_it_stay_plain(mark):
    """Pictures beside a text of several lines."""
    picture = "A" * 2**23
    parts = [{"url": picture}, "MARK", {"url": picture}, "MARK", picture]
    assert not takes_too_long(json.dumps(parts).replace("MARK", mark).encode(), 0.001)
