import dataclasses

import pytest

from covervlm.pruners import get_pruner, pruner_names


def test_every_documented_method_is_there():
    assert pruner_names() == [
        "mmtok",
        "vision_coverage",
        "text_coverage",
        "divprune",
        "cls_attention",
        "cdpruner",
        "random",
        "uniform",
        "none",
    ]


@pytest.mark.parametrize("name", pruner_names())
def test_methods_are_frozen_and_equal_by_parameters(name):
    pruner = get_pruner(name, tau_text=0.01)
    assert pruner.tau_text == 0.01
    assert pruner == get_pruner(name, tau_text=0.01) != get_pruner(name)
    assert hash(pruner) == hash(get_pruner(name, tau_text=0.01))
    with pytest.raises(dataclasses.FrozenInstanceError):
        pruner.tau_text = 1.0


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown pruning method 'nope'; choose one of mmtok, .*, none"):
        get_pruner("nope")


def test_an_unknown_parameter_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'mmtok'.*'tau'"):
        get_pruner("mmtok", tau=1.0)


@pytest.mark.parametrize("name", ["tau_text", "tau_vision", "alpha"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_parameters_of_the_objective_must_be_positive(name, value):
    with pytest.raises(ValueError, match=name):
        get_pruner("mmtok", **{name: value})
