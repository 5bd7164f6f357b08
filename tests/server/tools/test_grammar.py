"""An answer that has to call functions is calls alone, with arguments that follow their schemas, on any model."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from covervlm.server.core.answer import ArgumentsDelta, CallBegins
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import Function, ToolUse
from covervlm.server.core.grammar import Grammar
from covervlm.server.engines.embedded import grammar as engine_grammar
from covervlm.server.tools.formats import FORMATS
from covervlm.server.tools.grammar import calls_grammar
from covervlm.server.tools.reader import CallReader
from tests.server.engines.test_grammar import schemas

BYTES = engine_grammar.LLTokenizer("byte")


@st.composite
def functions(draw):
    names = draw(st.lists(st.from_regex("[a-zA-Z0-9_-]{1,8}", fullmatch=True), min_size=1, max_size=3, unique=True))
    made = []
    for name in names:
        fields = draw(st.lists(st.text(min_size=1, max_size=5), max_size=2, unique=True))
        properties = {field: draw(schemas(depth=1)) for field in fields}
        parameters = {"type": "object", "properties": properties, "required": fields, "additionalProperties": False}
        made.append(Function(name, "", parameters, strict=draw(st.booleans())))
    return tuple(made)


def read(tools, text):
    """(calls, what is text of an answer)."""
    reader = CallReader(FORMATS[tools.format], {function.name for function in tools.functions})
    parts = [*reader.feed(text), *reader.end()]
    calls = [(part.name, []) for part in parts if isinstance(part, CallBegins)]
    for part in parts:
        if isinstance(part, ArgumentsDelta):
            calls[part.call][1].append(part.text)
    rest = "".join(part.text for part in parts if not isinstance(part, CallBegins | ArgumentsDelta))
    return [(name, "".join(pieces)) for name, pieces in calls], rest


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(functions(), st.sampled_from(sorted(FORMATS)), st.booleans(), st.integers(0, 9))
def test_calls_of_random_functions_validate(demo, functions, form, parallel, seed):
    tools = ToolUse(functions, parallel, format=form)
    schema = {function.name: function.parameters for function in functions}
    [choice] = demo(calls_grammar(tools), temperature=1.2, seed=seed, max_tokens=160).choices
    calls, rest = read(tools, choice.text)
    complete = calls if choice.finish_reason == "stop" else calls[:-1]
    for name, arguments in complete:
        Draft202012Validator(schema[name]).validate(json.loads(arguments))
    if choice.finish_reason == "stop":
        assert rest == ""
        assert calls
        assert parallel or len(calls) == 1


def follows(grammar, text):
    """Whether the grammar allows a text, up to its end."""
    matcher = engine_grammar.LLMatcher(BYTES, engine_grammar._source(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


LOOK = Function("look", "Looks.", {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]})
CALL = {
    "hermes": '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>',
    "mistral": '[{"name": "look", "arguments": {"at": "sky"}}]',
    "llama3_json": '{"name": "look", "parameters": {"at": "sky"}}',
    "json": '{"name": "look", "arguments": {"at": "sky"}}',
}


@pytest.mark.parametrize("form", FORMATS)
def test_the_grammar_has_the_spelling_of_the_models_own_template(form):
    grammar = calls_grammar(ToolUse((LOOK,), format=form))
    assert follows(grammar, CALL[form])
    assert not follows(grammar, CALL[form].replace('": ', '":'))
    assert not follows(grammar, CALL[form].replace("look", "peek"))
    assert not follows(grammar, "Well.")


def test_arguments_are_those_that_the_schema_names_unless_it_says_otherwise():
    more = CALL["json"].replace('"sky"', '"sky", "by": "eye"')
    open_schema = dict(LOOK.parameters) | {"additionalProperties": True}
    elsewhere = {"allOf": [LOOK.parameters, {"properties": {"by": {"type": "string"}}}]}
    assert not follows(calls_grammar(ToolUse((LOOK,))), more)
    for schema in (open_schema, elsewhere):
        assert follows(calls_grammar(ToolUse((replace(LOOK, parameters=schema),))), more)


def test_one_call_is_all_where_calls_are_not_to_be_parallel():
    two = CALL["hermes"] + "\n" + CALL["hermes"]
    tools = ToolUse((LOOK,), format="hermes")
    assert follows(calls_grammar(tools), two)
    assert not follows(calls_grammar(replace(tools, parallel=False)), two)


def test_an_answer_may_follow_a_schema_instead():
    schema = Grammar.of_schema({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    grammar = calls_grammar(ToolUse((LOOK,), format="hermes"), otherwise=schema)
    assert follows(grammar, CALL["hermes"])
    assert follows(grammar, '{"n": 3}')
    assert not follows(grammar, '{"n": "x"}')


@pytest.mark.parametrize("strict", [True, False])
def test_what_of_a_schema_can_not_be_held_to_is_refused_where_it_is_strict(demo, strict):
    odd = {"type": "object", "properties": {"at": {"type": "string", "not": {"const": "x"}}}, "required": ["at"]}
    grammar = calls_grammar(ToolUse((Function("look", "", odd, strict),), format="json"))
    if strict:
        with pytest.raises(InvalidRequest) as refused:
            demo(grammar)
        assert (refused.value.param, refused.value.code) == ("tools", "invalid_grammar")
    else:
        assert demo(grammar, max_tokens=8).text


@pytest.mark.parametrize("otherwise", [None, Grammar.of_schema({"type": "string"})])
def test_parameters_that_are_no_schema_are_refused_with_their_functions_name_alone(demo, otherwise):
    wrong = Function("measure", "", {"type": "object", "properties": {"at": {"type": "place"}}})
    grammar = calls_grammar(ToolUse((LOOK, wrong), format="hermes"), otherwise=otherwise)
    with pytest.raises(InvalidRequest) as refused:
        demo(grammar)
    problem = "the parameters of 'measure': Invalid type: place."
    assert str(refused.value) == f"No answer can be held to this list of tools: {problem}"


def test_a_form_beside_tools_that_is_no_schema_is_refused_with_its_own_name(demo):
    schema = Grammar.of_schema({"type": "place"}, param="response_format.json_schema.schema")
    with pytest.raises(InvalidRequest, match=r"'response_format\.json_schema\.schema': Invalid type: place"):
        demo(calls_grammar(ToolUse((LOOK,)), otherwise=schema))
