"""Whose budget wins: the request's, the one in the model's name, or the server's default."""

import json

import pytest
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.core.generation import GenerationChunk, ImageReport, PromptReport, PruningPolicy
from covervlm.server.core.pruning_policy import VisionPruning
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine, chat_body


def policy(fields, **settings):
    """What the engine is asked to keep."""
    engine = ScriptedEngine()
    client = TestClient(create_app(Settings(**settings), engine))
    response = client.post("/v1/chat/completions", json={**chat_body("Hello"), **fields})
    assert response.status_code == 200, response.text
    return engine.requests[0].pruning


@pytest.mark.parametrize(
    ("fields", "settings", "expected"),
    [
        ({}, {}, PruningPolicy()),
        ({}, {"keep_tokens": 192}, PruningPolicy(keep_tokens=192)),
        ({}, {"keep_ratio": 0.2, "method": "uniform"}, PruningPolicy("uniform", keep_ratio=0.2)),
        ({"model": "demo:64"}, {}, PruningPolicy(keep_tokens=64)),
        ({"model": "demo:7"}, {"keep_ratio": 0.2}, PruningPolicy(keep_tokens=7)),
        ({"model": "demo:64", "vision_pruning": {"keep_ratio": 0.5}}, {}, PruningPolicy(keep_ratio=0.5)),
        ({"model": "demo:64", "vision_pruning": {"method": "random"}}, {}, PruningPolicy("random", keep_tokens=64)),
        ({"vision_pruning": {"method": "random"}}, {"keep_tokens": 192}, PruningPolicy("random", keep_tokens=192)),
        ({"vision_pruning": {"keep_tokens": 16}}, {"keep_ratio": 0.2}, PruningPolicy(keep_tokens=16)),
        ({"vision_pruning": {"coverage": 0.9}}, {"keep_tokens": 192}, PruningPolicy(coverage=0.9)),
        (
            {"vision_pruning": {"coverage": 0.9, "min_tokens": 8, "max_tokens": 64, "guide": "all_user"}},
            {},
            PruningPolicy(coverage=0.9, min_tokens=8, max_tokens=64, guide="all_user"),
        ),
        ({"vision_pruning": {"keep_tokens_per_crop": 32}}, {"keep_tokens": 9}, PruningPolicy(keep_tokens_per_crop=32)),
        (
            {"vision_pruning": {"parameters": {"tau_text": 0.1, "alpha": 2}}},
            {"keep_tokens": 9, "recipe": "released"},
            PruningPolicy(keep_tokens=9, parameters=(("alpha", 2), ("tau_text", 0.1)), recipe="released"),
        ),
        ({"vision_pruning": {"return_indices": True}}, {}, PruningPolicy(return_indices=True)),
        ({"vision_pruning": None}, {"keep_tokens": 192}, PruningPolicy(keep_tokens=192)),
    ],
)
def test_the_nearest_budget_wins(fields, settings, expected):
    assert policy(fields, **settings) == expected


SPELLED = [
    {"keep_tokens": 64},
    {"keep_tokens": [64, 16], "method": "uniform"},
    {"keep_ratio": 0.5, "guide": "none"},
    {"coverage": 0.9, "min_tokens": 8, "max_tokens": 64, "return_indices": True},
    {"keep_tokens_per_crop": 32, "recipe": "released"},
    {"keep_tokens": 8, "parameters": {"tau_text": 0.1, "alpha": 2}},
    {"question": "a triangle", "seed": 3, "method": "random", "keep_tokens": 9},
]


def test_vllms_spelling_means_the_same(red_png):
    assert {name for asked in SPELLED for name in asked} == set(VisionPruning.model_fields)
    for asked in SPELLED:
        engine = ScriptedEngine()
        client = TestClient(create_app(Settings(keep_tokens=192), engine))
        for fields in ({"vision_pruning": asked}, {"mm_processor_kwargs": {"vision_prune": asked}}):
            body = chat_body("Hello", red_png, red_png, **fields)
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        ours, theirs = (request.pruning for request in engine.requests)
        assert ours == theirs != PruningPolicy(keep_tokens=192)
        assert ours.question == asked.get("question")
    assert policy({"mm_processor_kwargs": {"vision_prune": None}}, keep_tokens=5) == PruningPolicy(keep_tokens=5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"vision_pruning": {"parameters": {"alpha": [1]}}}, "vision_pruning.parameters.alpha"),
        ({"vision_pruning": {"parameters": 3}}, "vision_pruning.parameters"),
        ({"vision_pruning": {"recipe": "paper"}}, "vision_pruning.recipe"),
        ({"vision_pruning": {"keep_tokens_per_crop": 0}}, "vision_pruning.keep_tokens_per_crop"),
        ({"mm_processor_kwargs": {"num_crops": 4}}, "mm_processor_kwargs.num_crops"),
        ({"mm_processor_kwargs": {"vision_prune": {"keep": 4}}}, "mm_processor_kwargs.vision_prune.keep"),
        (
            {"mm_processor_kwargs": {"vision_prune": {"keep_tokens": 4}}, "vision_pruning": {"keep_tokens": 4}},
            "mm_processor_kwargs",
        ),
    ],
)
def test_what_no_place_of_pruning_can_hold_is_refused_by_name(client, fields, param):
    response = client.post("/v1/chat/completions", json=chat_body("Hello", **fields))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_method_none_asks_for_the_unpruned_model_whatever_the_default():
    assert not policy({"vision_pruning": {"method": "none"}}, keep_tokens=192).prunes


def test_an_alias_follows_the_served_name():
    assert policy({"model": "shapes:9"}, served_model_name="shapes").keep_tokens == 9


def test_prune_answers_with_indices_and_generates_nothing(client, engine, red_png):
    response = client.post("/v1/prune", json=chat_body("What?", red_png, vision_pruning={"keep_tokens": 3}))
    answer = response.json()
    assert answer["object"] == "vision_pruning"
    assert answer["model"] == "demo"
    assert answer["prompt_tokens"] == 13
    assert answer["images"] == [
        {
            "total": 576,
            "kept": 3,
            "method": "mmtok",
            "coverage": 0.5,
            "milliseconds": 1.25,
            "indices": [0, 1, 2],
            "grid": [24, 24],
            "box": [0.0, 0.0, 96.0, 96.0],
        }
    ]
    assert answer["seconds"]["selection"] == 0.004
    assert engine.requests[0].pruning.keep_tokens == 3


def test_prune_leaves_indices_out_where_they_are_not_wanted(client, red_png):
    wish = {"keep_tokens": 3, "return_indices": False}
    answer = client.post("/v1/prune", json=chat_body("What?", red_png, vision_pruning=wish)).json()
    assert "indices" not in answer["images"][0]


@pytest.mark.parametrize(
    ("pruning", "kept", "warnings"),
    [
        (
            {"method": "mmtok"},
            576,
            ["'mmtok' pruned nothing, because there is no budget; set one, e.g. keep_tokens."],
        ),
        ({"method": "none"}, 576, None),
        ({"keep_tokens": 1}, 1, None),
        ({"method": "mmtok", "keep_tokens": 64}, 64, None),
        (
            {"coverage": 0.1},
            2,
            ["A coverage of 0.1 kept 2 of 576 tokens; set min_tokens to keep more."],
        ),
        ({"coverage": 0.9}, 100, None),
    ],
)
def test_what_is_hardly_meant_is_remarked_on(client, engine, red_png, pruning, kept, warnings):
    report = ImageReport(576, kept, "mmtok")
    engine.script = lambda request: [GenerationChunk(0, "x", 1, (), "stop", PromptReport(10 + kept, (report,)))]
    for stream in (False, True):
        response = client.post(
            "/v1/chat/completions", json=chat_body("x", red_png, vision_pruning=pruning, stream=stream)
        )
        text = response.text if not stream else response.text.partition("data: ")[2].partition("\n")[0]
        assert json.loads(text)["vision_pruning"].get("warnings") == warnings
