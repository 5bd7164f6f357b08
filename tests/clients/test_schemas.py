"""Answers by a schema: instances of a type, dicts where the schema is one, and what happens to those that are cut."""

import sys
from typing import Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, model_validator
from typing_extensions import TypedDict

from covervlm.clients import AsyncClient, BadRequestError, Client, ResponseFormatError
from covervlm.clients.schemas import closed


class Place(BaseModel):
    side: Literal["left", "right"]
    height: int = Field(ge=0, le=9)


class Thing(BaseModel):
    color: Literal["red", "blue"]
    place: Place


class Facts(TypedDict):
    color: Literal["red", "blue"]


class Impossible(Thing):
    @model_validator(mode="after")
    def refuse(self):
        raise ValueError("nothing is good enough")


SCHEMA = closed(Thing.model_json_schema())
ASKED = {"temperature": 0, "max_tokens": 90, "keep_tokens": 64}


@pytest.fixture(scope="module")
def client(url):
    with Client(url, retries=0) as client:
        yield client


async def test_a_model_class_gives_its_instance_and_a_dict_a_dict_blocking_or_not_streamed_or_not(url, client, scene):
    asked = (scene.path, scene.question)
    answer = client.chat(*asked, schema=Thing, **ASKED)
    plain = client.chat(*asked, schema=SCHEMA, **ASKED)
    assert isinstance(answer.parsed, Thing)
    assert plain.parsed == answer.parsed.model_dump()
    Draft202012Validator(SCHEMA).validate(plain.parsed)
    assert (plain.images[0].kept, plain.finish_reason) == (64, "stop")
    with client.stream(*asked, schema=Thing, **ASKED) as stream:
        text = "".join(stream)
    assert (text, stream.answer.parsed, stream.answer.raw) == (answer.text, answer.parsed, None)
    async with AsyncClient(url, retries=0) as other:
        assert (await other.chat(*asked, schema=Thing, **ASKED)).parsed == answer.parsed
        pieces = other.stream(*asked, schema=SCHEMA, **ASKED)
        assert "".join([piece async for piece in pieces]) == text
        assert pieces.answer.parsed == plain.parsed


def test_other_types_that_pydantic_knows_are_schemas_too(client, scene):
    assert client.chat(scene.path, scene.question, schema=Facts, **ASKED).parsed["color"] in ("red", "blue")
    assert client.chat(scene.path, scene.question, schema=bool, **ASKED).parsed in (True, False)


def test_without_a_schema_nothing_is_parsed(client, scene):
    assert client.chat(scene.path, scene.question, **ASKED).parsed is None


@pytest.mark.parametrize("schema", [Thing, SCHEMA])
def test_an_answer_that_was_cut_off_is_an_error_after_its_last_piece(client, scene, schema):
    few = {**ASKED, "max_tokens": 3}
    with pytest.raises(ResponseFormatError, match="cut off before its end; allow it more tokens"):
        client.chat(scene.path, scene.question, schema=schema, **few)
    pieces = []
    with pytest.raises(ResponseFormatError, match="cut off"):
        pieces.extend(client.stream(scene.path, scene.question, schema=schema, **few))


def test_an_answer_that_the_types_own_rules_refuse_is_an_error_that_quotes_them(client, scene):
    with pytest.raises(ResponseFormatError, match="nothing is good enough"):
        client.chat(scene.path, scene.question, schema=Impossible, **ASKED)


def test_a_keyword_that_cannot_be_enforced_is_refused_with_its_place(client, scene):
    with pytest.raises(BadRequestError, match="uniqueItems") as refused:
        client.chat(scene.path, scene.question, schema=set[int], **ASKED)
    assert refused.value.param == "response_format.json_schema.schema"


def test_without_pydantic_a_dict_is_a_schema_and_a_type_is_none(client, scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert client.chat(scene.path, scene.question, schema=SCHEMA, **ASKED).parsed["color"] in ("red", "blue")
    with pytest.raises(TypeError, match="needs pydantic"):
        client.chat(scene.path, scene.question, schema=Thing, **ASKED)
