"""Answers under a grammar: what ends with `stop` follows it, and what is cut begins something that does."""

import asyncio
import json
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from llguidance import LLMatcher
from transformers import PreTrainedTokenizerFast

from covervlm.server.core.errors import EngineError, InvalidRequest
from covervlm.server.core.grammar import Grammar
from covervlm.server.demo import model_path
from covervlm.server.engines.embedded import grammar as engine_grammar
from covervlm.server.engines.embedded.grammar import Constraint, Grammars

QUESTION = "Describe the image."
SCENE = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "blue", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 20},
        "places": {"type": "array", "items": {"enum": ["left", "right", "top"]}, "maxItems": 2},
    },
    "required": ["color", "count", "places"],
    "additionalProperties": False,
}


@st.composite
def schemas(draw, depth=3):
    """Schemas whose answers are short: every string, list and number has its bounds."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const"]
    kind = draw(st.sampled_from(kinds + ["object", "array", "anyOf", "$ref"] * (depth > 0)))
    match kind:
        case "string":
            bounds = draw(st.tuples(st.integers(0, 4), st.integers(0, 6)))
            pattern = st.fixed_dictionaries(
                {
                    "type": st.just("string"),
                    "pattern": st.sampled_from(["^[a-c]{1,3}$", "^é+x?$"]),
                    "maxLength": st.just(5),
                }
            )
            dated = st.just({"type": "string", "format": "date"})
            plain = st.just({"type": "string", "minLength": min(bounds), "maxLength": max(bounds)})
            return draw(plain | pattern | dated)
        case "integer" | "number":
            low, high = sorted(draw(st.tuples(st.integers(-50, 50), st.integers(-50, 50))))
            return {"type": kind, "minimum": low, "maximum": high}
        case "enum":
            values = st.text(max_size=4) | st.integers(-9, 9) | st.booleans() | st.none()
            return {"enum": draw(st.lists(values, min_size=1, max_size=4))}
        case "const":
            return {"const": draw(st.text(max_size=6) | st.lists(st.integers(0, 9), max_size=3))}
        case "object":
            names = draw(st.lists(st.text(min_size=1, max_size=5), max_size=3, unique=True))
            properties = {name: draw(schemas(depth=depth - 1)) for name in names}
            required = [name for name in names if draw(st.booleans())]
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        case "array":
            few = draw(st.integers(0, 2))
            return {"type": "array", "items": draw(schemas(depth=depth - 1)), "minItems": few, "maxItems": few + 1}
        case "anyOf":
            return {"anyOf": draw(st.lists(schemas(depth=depth - 1), min_size=1, max_size=3))}
        case "$ref":
            return {"$defs": {"x": draw(schemas(depth=depth - 1))}, "type": ["array", "null"], "maxItems": 1}
        case _:
            return {"type": kind}


SAMPLINGS = [
    {},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 1.5, "top_p": 0.9, "seed": 2},
    {"temperature": 1.2, "min_p": 0.05, "seed": 3},
    {"temperature": 1.0, "top_k": 5, "seed": 4},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 1.0, "frequency_penalty": 1.0},
    {"temperature": 1.0, "seed": 5, "n": 2},
    {"ignore_eos": True},
    {"min_tokens": 4},
    {"logit_bias": {5: 3.0}},
    {"logprobs": True, "top_logprobs": 3},
]


def begins_one(grammar: Grammar, text: str) -> bool:
    """Whether a text is the beginning of what a grammar allows, byte by byte and whatever the tokens were."""
    matcher = LLMatcher(BYTES, engine_grammar._source(grammar), log_level=0, limits=engine_grammar._LIMITS)
    return matcher.consume_tokens(list(text.encode()))


BYTES = engine_grammar.LLTokenizer("byte")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas(), sampling=st.sampled_from(SAMPLINGS))
def test_what_ends_with_stop_validates_and_what_is_cut_begins_a_valid_answer(demo, schema, sampling):
    grammar = Grammar.of_schema(schema)
    got = demo(grammar, **sampling)
    for choice in got.choices:
        if choice.finish_reason == "stop":
            Draft202012Validator(schema).validate(json.loads(choice.text))
        else:
            assert choice.count == 48
            assert begins_one(grammar, choice.text)
            assert not begins_one(grammar, choice.text + "\x00")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas(), sampling=st.sampled_from(SAMPLINGS), limit=st.integers(1, 12))
def test_an_answer_cut_short_is_the_beginning_of_the_one_with_more_room(demo, schema, sampling, limit):
    grammar = Grammar.of_schema(schema)
    sampling = sampling | {"min_tokens": min(sampling.get("min_tokens", 0), limit)}
    whole, cut = demo(grammar, **sampling), demo(grammar, max_tokens=limit, **sampling)
    for long, short in zip(whole.choices, cut.choices, strict=True):
        assert long.text.startswith(short.text.rstrip("\ufffd"))
        assert short.count == min(limit, long.count)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    choices=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5),
    sampling=st.sampled_from(SAMPLINGS),
)
def test_a_choice_is_one_of_them_to_the_letter(demo, choices, sampling):
    for choice in demo(Grammar.of_choices(choices), **sampling).choices:
        if choice.finish_reason == "stop":
            assert choice.text in choices
        else:
            assert any(one.startswith(choice.text) for one in choices)


@pytest.mark.parametrize(
    "pattern", [r"(yes|no), [0-9]{3}", r"[a-f]{2,5}(-[a-f]{1,3}){0,2}", r"ü?é[^a-z]{1,4}", r"(a|b)*c{3}"]
)
@pytest.mark.parametrize("sampling", SAMPLINGS[:5])
def test_an_answer_matches_its_regular_expression(demo, pattern, sampling):
    choice = demo(Grammar("regex", pattern), **sampling).choices[0]
    assert (
        re.fullmatch(pattern, choice.text)
        if choice.finish_reason == "stop"
        else begins_one(Grammar("regex", pattern), choice.text)
    )


@pytest.mark.parametrize(
    "text",
    [
        'start: "call " NAME " " NUMBER\nNAME: /[a-z]{1,6}/\nNUMBER: /[0-9]{1,3}/',
        'root ::= "call " name " " [0-9] [0-9]? [0-9]?\nname ::= [a-z] [a-z]? [a-z]?',
        'start: "call x " %json {"type": "integer", "minimum": 0, "maximum": 99}',
    ],
    ids=["lark", "gbnf", "schema within"],
)
def test_a_grammar_may_be_in_larks_or_gbnfs_notation_with_schemas_inside(demo, text):
    assert re.fullmatch(r"call [a-z]+ \d+", demo(Grammar("grammar", text), temperature=1.0, seed=1).text)


def test_pieces_of_a_stream_join_to_the_whole_whether_pruned_or_not(demo, scene):
    for pruning in ({}, {"keep_tokens": 16}):
        request = demo._ask(scene(1), QUESTION, grammar=Grammar.of_schema(SCENE), max_tokens=80, pruning=pruning)
        got = demo._loop.run_until_complete(demo._answer(demo._engine, request))
        assert got.choices[0].finish_reason == "stop"
        Draft202012Validator(SCENE).validate(json.loads(got.text))
        assert len([chunk for chunk in got.chunks if chunk.text]) > 3


def test_log_probabilities_are_those_of_what_the_grammar_leaves(demo):
    got = demo(Grammar.of_choices(["red", "blue"]), logprobs=True, top_logprobs=2, temperature=1.0, seed=3)
    assert "".join(got.choices[0].tokens) == got.text
    first = next(entry for chunk in got.chunks for entry in chunk.logprobs)
    assert first.logprob <= 0
    assert all(
        any(one.startswith(entry.token) for one in ("red", "blue")) for entry in first.top if entry.logprob > -99
    )


def test_a_stop_string_ends_an_answer_within_its_grammar(demo):
    whole = demo(Grammar.of_schema(SCENE)).text
    cut = demo(Grammar.of_schema(SCENE), stop=('"count"',))
    assert cut.choices[0].finish_reason == "stop"
    assert cut.text == whole[: whole.index('"count"')]


def test_answers_with_and_without_a_grammar_run_side_by_side_as_alone(demo, scene):
    grammars = [None, Grammar.of_schema(SCENE), Grammar("regex", "[0-9]{3,9}x"), Grammar.of_choices(["one", "two"])]
    requests = [
        demo._ask(scene(number % 3), QUESTION, grammar=grammar, max_tokens=30, temperature=1.0, seed=number)
        for number, grammar in enumerate(grammars * 3)
    ]

    async def together():
        return await asyncio.gather(*(demo._answer(demo._engine, request) for request in requests))

    batched = demo._loop.run_until_complete(together())
    for request, got in zip(requests, batched, strict=True):
        assert got.text == demo._loop.run_until_complete(demo._answer(demo._engine, request)).text


def test_a_grammar_that_fails_half_way_costs_its_own_request_alone(demo):
    hard = Grammar("grammar", "\n".join(["start: r0", *(f"r{i}: r{i + 1} r{i + 1}" for i in range(30)), 'r30: "a"']))
    requests = [demo._ask(None, QUESTION, grammar=g, max_tokens=40) for g in (hard, Grammar.of_schema(SCENE), None)]

    async def together():
        return await asyncio.gather(*(demo._answer(demo._engine, r) for r in requests), return_exceptions=True)

    failed, structured, plain = demo._loop.run_until_complete(together())
    assert isinstance(failed, EngineError)
    assert "grammar" in str(failed)
    assert structured.choices[0].finish_reason in ("stop", "length")
    assert plain.text
    assert demo(None).text == plain.text or demo._engine.ready


def test_bans_that_leave_nothing_cost_their_own_request_alone(demo):
    with pytest.raises(EngineError, match="No token is left"):
        demo(Grammar.of_choices(["aaa"]), bad_words=("a", "aa", "aaa"))
    assert demo(Grammar.of_choices(["aaa"])).text == "aaa"


UNUSABLE = {
    "a keyword that no grammar has": Grammar.of_schema({"not": {"type": "string"}}),
    "a reference to nothing": Grammar.of_schema({"$ref": "#/$defs/missing"}),
    "a reference elsewhere": Grammar.of_schema({"$ref": "http://example.com/a.json"}),
    "nothing fits": Grammar.of_schema({"enum": []}),
    "a loop": Grammar.of_schema({"$ref": "#"}),
    "a regex unfinished": Grammar("regex", "((("),
    "a regex nested": Grammar("regex", "(" * 2000 + "a" + ")" * 2000),
    "a grammar of nothing": Grammar("grammar", "start ::: "),
    "a grammar nested": Grammar("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_compiled_is_refused_with_its_field(demo, name):
    grammar = UNUSABLE[name]
    with pytest.raises(InvalidRequest) as refused:
        demo(grammar)
    assert refused.value.param == grammar.param
    assert len(str(refused.value)) < 600


def test_a_multiple_of_nothing_is_refused_with_the_keyword(demo):
    with pytest.raises(InvalidRequest, match="`multipleOf` should be a number above 0"):
        demo(Grammar.of_schema({"type": "number", "multipleOf": 0}))


def test_a_keyword_that_no_grammar_has_is_ignored_where_the_schema_is_not_strict(demo):
    schema = {"type": "integer", "minimum": 1, "maximum": 9, "not": {"const": 3}}
    assert demo(Grammar.of_schema(schema, lenient=True)).text in set("123456789")


HOSTILE = {
    "catastrophic pattern": {"type": "string", "pattern": "^(a+)+$"},
    "exponential pattern": {"type": "string", "pattern": "^((a|b)*a(a|b){60}){20}$"},
    "huge repeat": {"type": "string", "pattern": "^(.{0,5000}){0,5000}$"},
    "endless recursion": {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"properties": {"c": {"$ref": "#/$defs/n"}}, "required": ["c"]}},
    },
    "many optional": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(1000)}},
    "a million items": {"type": "array", "minItems": 10**6, "items": {"type": "integer"}},
    "long chain": {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}, "type": "array"} for i in range(499)}
        | {"d499": {}},
    },
    "doubling": {
        "$ref": "#/$defs/d20",
        "$defs": {"d0": {"type": "integer"}}
        | {f"d{i}": {"prefixItems": [{"$ref": f"#/$defs/d{i - 1}"}] * 2} for i in range(1, 21)},
    },
    "exponential union": {
        "allOf": [
            {"anyOf": [{"properties": {f"a{i}": {"type": "integer"}}}, {"properties": {f"b{i}": {}}}]}
            for i in range(20)
        ]
    },
    "digits": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
}


@pytest.mark.usefixtures("spared")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_get_a_refusal_or_a_right_beginning_soon(demo, name):
    grammar = Grammar.of_schema(HOSTILE[name])
    started = time.perf_counter()
    try:
        text = demo(grammar, max_tokens=8).text
    except InvalidRequest:
        text = None
    assert time.perf_counter() - started < 5
    assert text is None or begins_one(grammar, text)


def test_compiled_grammars_are_kept_for_their_owner_alone_and_not_for_ever(monkeypatch):
    monkeypatch.setattr(engine_grammar, "KEPT", 3)
    grammars = Grammars(PreTrainedTokenizerFast.from_pretrained(model_path()), 256, [2], threads=1)
    first = grammars.compiled(Grammar.of_choices(["a"]), "one")
    assert grammars.compiled(Grammar.of_choices(["a"], param="elsewhere"), "one") is first
    assert grammars.compiled(Grammar.of_choices(["a"]), "other") is not first
    for number in range(3):
        grammars.compiled(Grammar.of_choices([f"b{number}"]), "other")
    assert grammars.compiled(Grammar.of_choices(["a"]), "one") is not first
    grammars.close()


def test_a_grammar_that_takes_too_long_is_refused_and_the_next_is_compiled(monkeypatch):
    grammars = Grammars(PreTrainedTokenizerFast.from_pretrained(model_path()), 256, [2], threads=2)
    monkeypatch.setattr(engine_grammar, "COMPILE_SECONDS", 0.0)
    slow = Grammar.of_schema({"properties": {f"p{i}": {"type": "integer"} for i in range(900)}}, param="p")
    with pytest.raises(InvalidRequest, match="takes more than"):
        grammars.compiled(slow, "one")
    monkeypatch.undo()
    assert grammars.compiled(Grammar.of_choices(["a"]), "one")
    grammars.close()


class Failed:
    """A matcher after a step that was too much for it."""

    def deep_copy(self):
        return self

    def is_error(self):
        return True

    def get_error(self):
        return "lexer error: too many expressions constructed"


def test_a_grammar_that_becomes_too_complex_on_the_way_is_refused_as_the_requests_own():
    grammar = Grammar("regex", "(a|b)*", param="structured_outputs.regex")
    with pytest.raises(InvalidRequest, match="regular expression: it became too complex on the way") as refused:
        Constraint(grammar, Failed()).check()
    assert (refused.value.param, refused.value.code) == ("structured_outputs.regex", "invalid_grammar")
