"""A method's own parameters in a request: what is taken, what is refused by name, and what they change."""

import json
from dataclasses import fields

import pytest
import torch
from jsonschema import Draft202012Validator

from covervlm.pruners import PruneInput, get_pruner, pruner_names
from covervlm.pruners.registry import pruner_class
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import PruningPolicy
from covervlm.server.models.base import ImageTokens, Layout, Part
from covervlm.server.selection.parameters import schemas
from covervlm.server.selection.selector import Selector, pruner_for


def asked(method, **parameters):
    return PruningPolicy(method, keep_tokens=4, parameters=tuple(sorted(parameters.items())))


def test_parameters_reach_the_method_before_those_of_the_architecture():
    pruner = pruner_for(asked("mmtok", alpha=2, tau_text=0.5), {"tau_text": 0.01, "tau_vision": 0.3})
    assert pruner == get_pruner("mmtok", alpha=2.0, tau_text=0.5, tau_vision=0.3)
    # Null is as good as absent.
    assert pruner_for(asked("mmtok", tau_text=None, alpha=2), {"tau_text": 0.01}) == get_pruner(
        "mmtok", alpha=2.0, tau_text=0.01
    )
    assert pruner_for(asked("holov", regions=2), {}) == get_pruner("holov", regions=2)


@pytest.mark.parametrize(
    ("method", "parameters", "param"),
    [
        ("mmtok", {"tau": 1.0}, "tau"),
        ("mmtok", {"tau": None}, "tau"),
        ("mmtok", {"regions": 4}, "regions"),
        ("mmtok", {"alpha": 0}, "alpha"),
        ("mmtok", {"alpha": "1"}, "alpha"),
        ("mmtok", {"alpha": True}, "alpha"),
        ("mmtok", {"alpha": float("nan")}, "alpha"),
        ("mmtok", {"tau_text": 1e-9}, "tau_text"),
        ("holov", {"regions": 65}, "regions"),
        ("holov", {"regions": 2.5}, "regions"),
        ("cdpruner", {"relevance": "clap"}, "relevance"),
        ("random", {"x" * 60: 1}, "x" * 60),
    ],
)
def test_what_a_method_cannot_take_is_refused_by_name(method, parameters, param):
    with pytest.raises(InvalidRequest, match=method) as refused:
        pruner_for(asked(method, **parameters), {})
    assert refused.value.param == f"vision_pruning.parameters.{param}"
    assert refused.value.code == "invalid_value"


@pytest.mark.parametrize("method", pruner_names())
def test_the_schema_of_a_method_has_its_fields_and_takes_its_defaults(method):
    schema = schemas([method])[method]
    Draft202012Validator.check_schema(schema)
    cls = pruner_class(method)
    assert set(schema["properties"]) == {field.name for field in fields(cls)}
    defaults = {field.name: field.default for field in fields(cls)}
    Draft202012Validator(schema).validate(json.loads(json.dumps(defaults)))
    assert pruner_for(asked(method, **defaults), {}, scales=True) == get_pruner(method)


def test_selections_that_no_question_changes_are_remembered_by_their_parameters():
    generator = torch.Generator().manual_seed(1)
    tokens, attention = torch.randn(16, 8, generator=generator), torch.rand(16, generator=generator)
    image = ImageTokens(Layout(16, (Part(torch.arange(16), torch.arange(16), (4, 4)),)), tokens, tokens, attention)
    selector = Selector()
    for _ in range(2):
        for regions in (1, 2, 4):
            policy = asked("holov", regions=regions)
            [kept], _ = selector.select(policy, pruner_for(policy, {}), [image], None)
            alone = PruneInput(tokens, tokens, grid=(4, 4), cls_attention=attention)
            [expected] = get_pruner("holov", regions=regions).select([alone], 4)
            assert kept.tolist() == expected.tolist()
