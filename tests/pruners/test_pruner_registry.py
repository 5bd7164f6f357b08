"""Methods by name: what the guides promise, one instance for equal calls, and what is refused."""

import dataclasses
import re
from pathlib import Path

import pytest

from covervlm.pruners import get_pruner, pruner_names, registry

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("guide", ["README.md", "docs/production.md"])
def test_every_method_that_a_guide_names_is_there(guide):
    (row,) = re.findall(r"^\| `method` \|(.*)\|$", (ROOT / guide).read_text(), re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", row))
    assert {"mmtok", "none"} < named <= set(pruner_names())


@pytest.mark.parametrize("name", pruner_names())
def test_methods_are_frozen_and_equal_by_parameters(name):
    pruner = get_pruner(name, tau_text=0.01)
    assert pruner.tau_text == 0.01
    assert pruner == get_pruner(name, tau_text=0.01) != get_pruner(name)
    assert hash(pruner) == hash(get_pruner(name, tau_text=0.01))
    with pytest.raises(dataclasses.FrozenInstanceError):
        pruner.tau_text = 1.0


def test_equal_calls_share_one_instance_and_others_do_not():
    assert get_pruner("mmtok") is get_pruner("mmtok")
    assert get_pruner("mmtok", alpha=2.0) is get_pruner("mmtok", alpha=2.0)
    assert get_pruner("mmtok", alpha=2.0).alpha == 2.0
    assert get_pruner("mmtok", alpha=3.0).alpha == 3.0
    assert get_pruner("mmtok").alpha == 0.5
    assert type(get_pruner("mmtok", alpha=2).alpha) is int
    assert type(get_pruner("vision_coverage")) is not type(get_pruner("text_coverage"))


def test_a_refused_name_is_accepted_once_it_is_registered(monkeypatch):
    with pytest.raises(ValueError, match="unknown pruning method 'floor'"):
        get_pruner("floor")
    monkeypatch.setitem(registry._METHODS, "floor", ("covervlm.pruners.random", "Random"))
    assert get_pruner("floor") == get_pruner("random")
    get_pruner.cache_clear()


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
