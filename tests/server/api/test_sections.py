"""Answers of text and calls in any order, in the words of each API: joined, the stream is the whole."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from covervlm.server.api.routes.messages import MessageReply
from covervlm.server.api.routes.responses import ResponseReply
from covervlm.server.api.wire.responses_request import ResponsesRequest
from covervlm.server.core.answer import ArgumentsDelta, CallBegins, Ending, Opening, TextDelta
from covervlm.server.core.generation import PromptReport
from covervlm.server.telemetry.request_record import RequestRecord

MESSAGE_EVENT = TypeAdapter(RawMessageStreamEvent)
RESPONSE_EVENT = TypeAdapter(ResponseStreamEvent)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
values = st.dictionaries(texts, st.none() | st.integers(-9, 9) | texts | st.lists(texts, max_size=2), max_size=3)
sections = st.lists(st.lists(texts, min_size=1, max_size=3) | st.tuples(values, st.integers(1, 9)), max_size=4)


def in_parts(drawn, reason):
    """drawn: pieces of a text, or a call's arguments and the length of their pieces."""
    yield Opening(0)
    calls = 0
    for section in drawn:
        if isinstance(section, list):
            yield from (TextDelta(0, piece) for piece in section)
            continue
        written, length = json.dumps(section[0]), section[1]
        yield CallBegins(0, calls, f"call_{calls}", "look")
        yield from (ArgumentsDelta(0, calls, written[i : i + length]) for i in range(0, len(written), length))
        calls += 1
    yield Ending(0, reason)


def said(drawn):
    """Neighbouring texts are one; an answer of nothing is an empty text."""
    joined = []
    for section in drawn:
        if isinstance(section, tuple):
            joined.append(section[0])
        elif joined and isinstance(joined[-1], str):
            joined[-1] += "".join(section)
        else:
            joined.append("".join(section))
    return joined or [""]


def replies(make, drawn, reason):
    """The whole in JSON, and the data of all events."""

    def reply():
        async def parts():
            for part in in_parts(drawn, reason):
                yield part

        return make(SimpleNamespace(parts=parts, prompt=PromptReport(10), completion_tokens=5))

    async def both():
        return json.loads(await reply().whole()), [event async for event in reply().events()]

    whole, events = asyncio.run(both())
    return whole, [event.partition("\ndata: ")[2].strip() for event in events]


@given(sections, st.sampled_from(["stop", "length", "tool_calls"]))
@settings(deadline=None)
def test_a_message_is_the_same_whole_and_streamed(drawn, reason):
    record = RequestRecord("r", "POST")
    whole, events = replies(lambda answer: MessageReply(answer, record), drawn, reason)
    assert [block.get("text", block.get("input")) for block in whole["content"]] == said(drawn)
    called = any(isinstance(section, tuple) for section in drawn)
    assert whole["stop_reason"] == ("max_tokens" if reason == "length" else "tool_use" if called else "end_turn")
    built, buffers = None, {}
    for data in events:
        if json.loads(data)["type"] != "ping":
            event = MESSAGE_EVENT.validate_json(data)
            built = accumulate_event(event=event, current_snapshot=built, json_bufs=buffers)
    message = Message.model_validate(whole | {"id": built.id}, strict=True)
    assert built.model_dump(exclude_none=True) == message.model_dump(exclude_none=True)


async def unasked(ids):
    raise AssertionError("nobody asked for tokens")


@given(sections, st.sampled_from(["stop", "length", "tool_calls"]))
@settings(deadline=None)
def test_a_response_is_the_same_whole_and_streamed(drawn, reason):
    body, record = ResponsesRequest(model="demo", input="a"), RequestRecord("r", "POST")
    engine = SimpleNamespace(sampling={})
    whole, events = replies(lambda answer: ResponseReply(body, answer, record, engine, unasked), drawn, reason)
    Response.model_validate(whole)
    shown = [item["content"][0]["text"] if item["type"] == "message" else item for item in whole["output"]]
    assert [item if isinstance(item, str) else json.loads(item["arguments"]) for item in shown] == said(drawn)
    told = [RESPONSE_EVENT.validate_json(data) for data in events]
    assert [event.sequence_number for event in told] == list(range(len(told)))
    final = told[-1].response
    assert [item.status for item in final.output][:-1] == ["completed"] * (len(final.output) - 1)
    deltas = dict.fromkeys(range(len(final.output)), "")
    for event in told:
        if event.type.endswith(".delta"):
            deltas[event.output_index] += event.delta
            assert event.item_id == final.output[event.output_index].id
    finished = [item.content[0].text if item.type == "message" else item.arguments for item in final.output]
    assert list(deltas.values()) == finished
    unnamed = [{**item, "id": ""} for item in whole["output"]]
    assert [{**item, "id": ""} for item in json.loads(events[-1])["response"]["output"]] == unnamed


@pytest.mark.parametrize(
    ("written", "read"),
    [("", {}), ('{"a": "b', {"a": "b"}), ('{"a": 1, "b', {"a": 1}), ("nonsense", {}), ("[1]", {})],
)
def test_arguments_that_were_cut_off_or_are_no_object_are_read_as_far_as_they_can_be(written, read):
    async def parts():
        for part in (CallBegins(0, 0, "c", "look"), ArgumentsDelta(0, 0, written), Ending(0, "length")):
            yield part

    answer = SimpleNamespace(parts=parts, prompt=PromptReport(10), completion_tokens=5)
    whole = json.loads(asyncio.run(MessageReply(answer, RequestRecord("r", "POST")).whole()))
    assert whole["content"] == [{"type": "tool_use", "id": "c", "name": "look", "input": read}]
