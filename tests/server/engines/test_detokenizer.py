import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from covervlm.server.demo import model_path
from covervlm.server.engines.detokenizer import Detokenizer

TOKENIZER = AutoTokenizer.from_pretrained(model_path())


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], str | None]:
    detokenizer = Detokenizer(TOKENIZER, stop)
    out = []
    for token in encode(text):
        out.append(detokenizer.feed(token))
        if detokenizer.stopped:
            return out, detokenizer.stopped
    return [*out, detokenizer.flush()], None


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(deadline=None)
def test_pieces_join_to_the_whole_text_without_half_characters(text):
    whole = TOKENIZER.decode(encode(text), skip_special_tokens=True)
    out, _ = pieces(text)
    assert "".join(out) == whole
    assert all("\ufffd" not in piece for piece in out) or "\ufffd" in whole


def test_an_emoji_of_several_tokens_comes_out_in_one_piece():
    assert len(encode("🦜")) > 1
    assert [piece for piece in pieces("🦜")[0] if piece] == ["🦜"]


def test_an_unfinished_character_is_never_emitted():
    detokenizer = Detokenizer(TOKENIZER)
    assert "".join(detokenizer.feed(token) for token in encode("🦜")[:-1]) + detokenizer.flush() == ""


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
@settings(deadline=None)
def test_text_ends_before_the_first_stop_string_wherever_tokens_split_it(text, stops):
    out, stopped = pieces(text, tuple(stops))
    found = [text.find(stop) for stop in stops if stop in text]
    assert bool(stopped) == bool(found)
    # The stop string that is complete first counts, even if another one begins before it.
    ends = sorted((text.find(stop) + len(stop), stop) for stop in stops if stop in text)
    first = {(text[: text.find(stop)], stop) for end, stop in ends if end == ends[0][0]}
    assert ("".join(out), stopped) in (first or {(text, None)})


def test_a_false_start_of_a_stop_string_is_released():
    out, stopped = pieces("a red star", stop=("red ring",))
    assert "".join(out) == "a red star"
    assert not stopped


@pytest.mark.parametrize("special", ["</s>", "<pad>"])
def test_special_tokens_make_no_text(special):
    assert Detokenizer(TOKENIZER).feed(TOKENIZER.convert_tokens_to_ids(special)) == ""
