"""Reference words: a strict reading of what a language model answers, and the two places to ask."""

import httpx
import pytest

from covervlm.server.asking.asker import EndpointAsker
from covervlm.server.asking.words import UnusableWords, parse_words, reference_words
from covervlm.server.core.caller import Caller


@pytest.mark.parametrize(
    "answer",
    [
        "red, green, dark blue",
        "Red, Green, Dark  Blue.",
        "1. red\n2. green\n3. dark blue",
        "- red\n- green\n* dark blue\n",
        "red; green;\n dark blue,",
        "red, green, RED, dark blue",
    ],
)
def test_lists_are_read_however_they_are_set(answer):
    assert parse_words(answer) == ["red", "green", "dark blue"]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "red",
        "The colors are red, green",
        "red, #00ff00",
        "Sure: red, green",
        "a b c d e, red",
        "red, <b>",
        "red,\x00",
    ],
)
def test_anything_else_is_refused(answer):
    with pytest.raises(UnusableWords):
        parse_words(answer)


def test_more_words_than_anyone_needs_are_refused():
    with pytest.raises(UnusableWords, match="65 words"):
        parse_words(", ".join(a + b for a in "abcdefgh" for b in "abcdefgh") + ", zz")


async def test_an_endpoint_is_asked_and_its_failures_say_no_more_than_that():
    seen = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) > 1:
            return httpx.Response(500, text="secret stack trace")
        return httpx.Response(200, json={"choices": [{"message": {"content": "red, green"}}]})

    ask = EndpointAsker("http://llm/v1/", "some-model", "key", httpx.MockTransport(respond))
    question = {"aspect": "color", "subject": "fruit", "request_id": "id", "caller": Caller()}
    assert await reference_words(ask, **question) == ["red", "green"]
    assert str(seen[0].url) == "http://llm/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer key"
    assert b"color of fruit" in seen[0].content
    with pytest.raises(UnusableWords, match=r"^the endpoint did not answer$"):
        await reference_words(ask, **question)
