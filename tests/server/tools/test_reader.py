"""Calls in an answer are the same wherever it was cut, and what is no call is text, to the letter."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from covervlm.server.core.answer import ArgumentsDelta, CallBegins, TextDelta
from covervlm.server.core.generation import ToolCall
from covervlm.server.tools.formats import FORMATS
from covervlm.server.tools.reader import CallReader

whatever_the_load = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = {"look", "zoom-in", "a_1"}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3))
ARGUMENTS = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)
CALLS = st.lists(st.tuples(st.sampled_from(sorted(NAMES)), ARGUMENTS), min_size=1, max_size=4)
FORMS = st.sampled_from(sorted(FORMATS))
PIECES = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "```json", "<tool_", "call>", "<", "```"),
        *('{"name": "look", "arguments": ', '{"name": "who", "arguments": ', '{"name": "look"}', '{"name": "look"'),
        *('{"arguments": {"a": [1]}, "name": "look"}', '{"arguments": {}, "name": "who"}', '{"parameters": {"x"'),
        *('{"a": 1}', '{"a": "}<"}', "{", "}", "[", "]", ";", ",", '"', "\\", "\n", " ", "  \n", "Hm", "é", ":"),
    ]
)


def read(form, pieces, *, many=True):
    """(text, [(name, arguments)]) of an answer that came in these pieces."""
    reader = CallReader(FORMATS[form], NAMES, many=many)
    parts = [part for piece in pieces for part in reader.feed(piece)]
    parts += reader.end()
    calls = [[part.name, ""] for part in parts if isinstance(part, CallBegins)]
    begun = [part for part in parts if isinstance(part, CallBegins)]
    assert [part.call for part in begun] == list(range(reader.calls))
    assert len({part.id for part in begun}) == len(begun)
    for part in parts:
        if isinstance(part, ArgumentsDelta):
            assert part.text
            calls[part.call][1] += part.text
    return "".join(part.text for part in parts if isinstance(part, TextDelta)), [tuple(call) for call in calls]


def cut(text, places):
    ends = sorted({min(place, len(text)) for place in places})
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


@whatever_the_load
@given(FORMS, CALLS, st.data())
def test_what_a_format_writes_it_reads(form, calls, data):
    written = FORMATS[form].written([ToolCall("", name, json.dumps(value)) for name, value in calls])
    text, found = read(form, cut(written, data.draw(st.lists(st.integers(0, len(written))))))
    assert text == ""
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


@whatever_the_load
@given(FORMS, st.lists(PIECES, max_size=14).map("".join), st.booleans())
@example("hermes", '{"arguments": {}, "name": "look"}', True)
def test_every_way_to_cut_an_answer_gives_the_same(form, text, many):
    whole = read(form, [text], many=many)
    assert read(form, list(text), many=many) == whole
    for place in range(len(text)):
        assert read(form, [text[:place], text[place:]], many=many) == whole


@whatever_the_load
@given(FORMS, st.lists(PIECES, max_size=14).map("".join))
def test_without_a_call_the_text_is_whole(form, text):
    said, calls = read(form, list(text))
    assert said == text or calls


@whatever_the_load
@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"])),
    st.sampled_from(["hermes", "mistral", "llama3_json"]),
    CALLS,
)
def test_text_before_the_first_call_is_kept_but_for_the_blanks_next_to_it(text, form, calls):
    marker = FORMATS[form].marker
    before = f"Well. {text.replace(marker, '')}"
    written = FORMATS[form].written([ToolCall("", name, json.dumps(value)) for name, value in calls])
    said, found = read(form, [before, "\n", written if written.startswith(marker) else marker + written])
    assert (said, len(found)) == (before.rstrip(), len(calls))


MALFORMED = {
    "a function that does not exist": '<tool_call>\n{"name": "who", "arguments": {}}\n</tool_call>',
    "no name": '<tool_call>{"arguments": {"a": 1}}</tool_call>',
    "no object": "<tool_call>look(1)</tool_call>",
    "arguments that are a list": '<tool_call>{"name": "look", "arguments": [1]}</tool_call>',
    "cut in its head": '<tool_call>{"name": "lo',
    "a marker alone": "I write <tool_call>",
    "a tag within words": "An <tool_caller> is",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_malformed_is_text(kind):
    assert read("hermes", list(MALFORMED[kind])) == (MALFORMED[kind], [])


FORGIVEN = {
    "no closing brace": ('<tool_call>{"name": "look", "arguments": {"a": 1}</tool_call>', '{"a": 1}'),
    "no closing tag": ('<tool_call>{"name": "look", "arguments": {"a": 1}}', '{"a": 1}'),
    "no tags": ('{"name": "look", "arguments": {"a": 1}}', '{"a": 1}'),
    "in a fence": ('```json\n{"name": "look", "arguments": {"a": 1}}\n```', '{"a": 1}'),
    "the name last": ('<tool_call>{"arguments": {"a": 1}, "name": "look"}</tool_call>', '{"a": 1}'),
    "no arguments": ('<tool_call>{"name": "look"}</tool_call>', "{}"),
    "with an id": ('<tool_call>{"id": "x1", "type": "function", "name": "look", "arguments": {}}</tool_call>', "{}"),
    "the other key": ('<tool_call>{"name": "look", "parameters": {}}</tool_call>', "{}"),
}


@pytest.mark.parametrize("kind", FORGIVEN)
def test_small_slips_are_forgiven(kind):
    text, arguments = FORGIVEN[kind]
    assert read("hermes", list(text)) == ("", [("look", arguments)])


def test_arguments_come_as_they_grow():
    reader = CallReader(FORMATS["hermes"], NAMES)
    assert list(reader.feed('Sure.\n<tool_call>\n{"name": "look", "arg')) == [TextDelta(0, "Sure.")]
    begun, first = reader.feed('uments": {"a": "<')
    assert (begun.name, first) == ("look", ArgumentsDelta(0, 0, '{"a": "<'))
    assert list(reader.feed('/tool_call>"')) == [ArgumentsDelta(0, 0, '/tool_call>"')]
    assert list(reader.feed("}}\n</tool")) == [ArgumentsDelta(0, 0, "}")]
    assert list(reader.feed("_call>")) == []
    assert list(reader.end()) == []


def test_after_the_first_call_nothing_is_told_where_only_one_may_be():
    two = FORMATS["hermes"].written([ToolCall("", "look", "{}")] * 2)
    assert read("hermes", list(two), many=False) == ("", [("look", "{}")])


@pytest.mark.parametrize("cut_short", ['{"name": "', '{"na', '{"arguments": {"x": 1}, "na', "{"])
def test_a_further_call_that_is_cut_short_is_no_text(cut_short):
    whole = '{"name": "look", "arguments": {"x": 1}}'
    assert read("json", [whole + ", " + cut_short]) == ("", [("look", '{"x": 1}')])
    assert read("json", [cut_short]) == (cut_short, [])


def test_ids_are_of_the_length_that_templates_insist_on():
    [begun, _] = CallReader(FORMATS["mistral"], NAMES).feed('[{"name": "look", "arguments": {')
    assert len(begun.id) == 9
    assert begun.id.isalnum()
