"""Text is bounded before it is tokenised, and class names and templates before they become prompts."""

import pytest

from covervlm.server.clip.encoder import batched
from covervlm.server.clip.encoder.encoder import ClipEncoder, TextTooLong
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.demo import clip_path
from covervlm.server.models.processor import CHARACTERS_PER_TOKEN

LONG = "a" * 5000


def test_a_long_text_is_refused_before_it_is_tokenised(monkeypatch):
    encoder = ClipEncoder(str(clip_path()), device="cpu")
    monkeypatch.setattr(encoder, "_own", lambda name: pytest.fail("tokenised"))
    with pytest.raises(TextTooLong, match="characters") as caught:
        encoder.tokenize(["star", "x" * (CHARACTERS_PER_TOKEN * encoder.text_limit + 1)])
    assert caught.value.index == 1


@pytest.mark.parametrize(
    ("names", "templates", "param", "code"),
    [
        (["a", LONG], ["{}"], "classes[1]", "context_length_exceeded"),
        (["a", "b"], ["{}", LONG + "{}"], "templates[1]", "context_length_exceeded"),
        ([f"{i} {'a' * 900}" for i in range(9000)], [f"{i} {{}}" for i in range(10)], "templates", "invalid_value"),
        ([str(i) for i in range(10_000)], [f"{i} {{}}" for i in range(11)], "templates", "invalid_value"),
    ],
)
def test_prompts_that_would_take_too_much_are_refused_before_they_are_made(monkeypatch, names, templates, param, code):
    monkeypatch.setattr(batched, "prompts", lambda *_: pytest.fail("made"))
    with pytest.raises(InvalidRequest) as caught:
        batched._prompts(names, templates, 1232)
    assert (caught.value.param, caught.value.code) == (param, code)
