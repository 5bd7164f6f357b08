"""Streams that fail on the way, break off, or are left early."""

import json

import httpx
import pytest

from covervlm import clients
from covervlm.clients import AsyncClient, Client


def chunk(choices=(), **fields):
    return {"id": "c-1", "model": "demo", "choices": list(choices), **fields}


def piece(text, index=0, finish_reason=None):
    return {"index": index, "delta": {"content": text}, "finish_reason": finish_reason}


USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 2,
    "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 4, "text_tokens": 5},
}
REPORT = {
    "images": [{"total": 576, "kept": 4, "method": "mmtok", "coverage": 0.5, "milliseconds": 1.5}],
    "seconds": {"tower": 0.25},
}
EVENTS = [
    chunk([piece("")], vision_pruning=REPORT, usage=None),
    chunk([piece("a")], usage=None),
    chunk([piece("other", index=1)], usage=None),
    chunk([piece(" ring")], usage=None),
    chunk([piece(None, finish_reason="length")], usage=None),
    chunk([], usage=USAGE),
]


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Sends its parts one by one, and knows whether it was closed."""

    def __init__(self, *parts):
        self.parts = parts
        self.closed = False

    def __iter__(self):
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def __aiter__(self):
        for part in self:
            yield part

    def close(self):
        self.closed = True

    async def aclose(self):
        self.closed = True


def sse(*events, done=True):
    parts = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    return [*parts, b"data: [DONE]\n\n"] if done else parts


def stream_of(*parts):
    body = Body(*parts)
    response = httpx.Response(200, stream=body, headers={"X-Request-Id": "r-9"})
    http = httpx.Client(transport=httpx.MockTransport(lambda request: response))
    return Client("http://host", model="demo", http_client=http).stream(None, "Hello"), body


def async_stream_of(*parts):
    body = Body(*parts)
    response = httpx.Response(200, stream=body)
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: response))
    return AsyncClient("http://host", model="demo", http_client=http).stream(None, "Hello"), body


def test_pieces_add_up_to_the_answer():
    stream, body = stream_of(*sse(*EVENTS))
    assert list(stream) == ["a", " ring"]
    answer = stream.answer
    assert (answer.id, answer.model, answer.text, answer.finish_reason) == ("c-1", "demo", "a ring", "length")
    assert answer.usage == clients.Usage(9, 2, 4, 5)
    assert answer.usage.total_tokens == 11
    assert answer.images == (clients.PrunedImage(576, 4, "mmtok", 0.5, 1.5),)
    assert answer.seconds == {"tower": 0.25}
    assert body.closed


def test_events_may_be_cut_anywhere_and_mixed_with_comments():
    whole = b": ping\r\n\r\n" + b"".join(sse(*EVENTS)).replace(b"\n", b"\r\n")
    stream, _ = stream_of(*(whole[i : i + 7] for i in range(0, len(whole), 7)))
    assert "".join(stream) == "a ring"
    assert stream.answer.usage.prompt_tokens == 9


def test_an_event_ends_where_the_standard_says_and_nowhere_else():
    """U+2028 and U+0085 are part of the text, lines of data belong together, and what has no data is no event."""
    told = chunk([piece("a\u2028b\x85c")], usage=None)
    pretty = json.dumps(chunk([], usage=USAGE), indent=1).replace("\n", "\ndata:")
    parts = [
        f"id: 7\ndata: {json.dumps(told, ensure_ascii=False)}\n\n",
        ": still here\n\n",
        f"event: usage\ndata:{pretty}\n\n",
        "retry: 3\n\n",
        "data: [DONE]\n\n",
    ]
    stream, _ = stream_of(*(part.encode() for part in parts))
    assert list(stream) == ["a\u2028b\x85c"]
    assert stream.answer.usage == clients.Usage(9, 2, 4, 5)


def test_what_is_no_event_stream_is_an_error_of_form():
    response = httpx.Response(200, html="<p>Log in first.</p>")
    with httpx.Client(transport=httpx.MockTransport(lambda request: response)) as http:
        stream = Client("http://host", model="demo", http_client=http).stream(None, "Hello")
        with pytest.raises(clients.ResponseFormatError, match="text/html"):
            list(stream)
    assert response.is_closed


def test_the_report_is_known_from_the_first_piece_on():
    stream, _ = stream_of(*sse(*EVENTS))
    assert stream.images == ()
    next(iter(stream))
    assert stream.images[0].kept == 4
    with pytest.raises(RuntimeError, match="not been read to its end"):
        _ = stream.answer


def test_a_failure_on_the_way_is_raised_where_it_comes():
    failure = {"error": {"message": "Out of memory.", "type": "server_error", "param": None, "code": "engine_error"}}
    stream, body = stream_of(*sse(*EVENTS[:2], failure, done=False))
    pieces = iter(stream)
    assert next(pieces) == "a"
    with pytest.raises(clients.ServerError, match="Out of memory") as caught:
        next(pieces)
    assert (caught.value.code, caught.value.request_id, caught.value.status) == ("engine_error", "r-9", None)
    assert body.closed


def test_a_failure_on_the_way_may_be_an_overload():
    failure = {"error": {"message": "Stopping.", "type": "server_error", "code": "engine_unavailable"}}
    stream, _ = stream_of(*sse(failure, done=False))
    with pytest.raises(clients.OverloadedError):
        list(stream)


@pytest.mark.parametrize("count", range(len(EVENTS) + 1))
def test_a_stream_that_breaks_off_is_no_answer(count):
    stream, _ = stream_of(*sse(*EVENTS[:count], done=False))
    with pytest.raises(clients.APIConnectionError, match="broke off"):
        list(stream)


def test_a_connection_lost_on_the_way_is_raised_not_tried_again():
    stream, _ = stream_of(*sse(*EVENTS[:2], done=False), httpx.ReadError("reset"))
    with pytest.raises(clients.APIConnectionError):
        list(stream)


@pytest.mark.parametrize("data", [b"data: <html>\n\n", b"data: []\n\n", b'data: {"choices": 1}\n\n'])
def test_events_of_another_server_are_an_error(data):
    stream, _ = stream_of(data)
    with pytest.raises(clients.ResponseFormatError):
        list(stream)


def test_leaving_a_with_block_closes_the_connection():
    stream, body = stream_of(*sse(*EVENTS))
    with stream:
        for _ in stream:
            break
        assert not body.closed
    assert body.closed


async def test_the_async_stream_reads_the_same():
    stream, body = async_stream_of(*sse(*EVENTS))
    assert [text async for text in stream] == ["a", " ring"]
    blocking, _ = stream_of(*sse(*EVENTS))
    list(blocking)
    assert stream.answer == blocking.answer
    assert body.closed


async def test_leaving_an_async_with_block_closes_the_connection():
    stream, body = async_stream_of(*sse(*EVENTS))
    async with stream:
        async for _ in stream:
            break
        assert not body.closed
    assert body.closed


async def test_the_async_stream_raises_failures_where_they_come():
    stream, _ = async_stream_of(*sse(*EVENTS[:2], done=False))
    with pytest.raises(clients.APIConnectionError, match="broke off"):
        [text async for text in stream]


async def test_the_blocking_stream_works_beside_a_running_event_loop_too():
    """As in a notebook, whose cells run on one."""
    stream, body = stream_of(*sse(*EVENTS))
    assert list(stream) == ["a", " ring"]
    assert body.closed
    stream, body = stream_of(*sse(*EVENTS))
    with stream:
        assert next(iter(stream)) == "a"
    del stream
    assert body.closed
