"""What every registered method owes its callers, whatever it does: parameters, documentation and progress."""

import inspect
import math
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import get_type_hints

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt

from covervlm.server.clip.methods import contracts
from covervlm.server.clip.methods.contracts import Diverged
from covervlm.server.clip.methods.inmap import InMaP, fit_vision_proxies
from covervlm.server.clip.methods.onzeta import OnlineZeroShot, OnZeta
from covervlm.server.clip.methods.registry import method_class
from tests.server.clip.method_samples import (
    KINDS,
    every_group,
    every_learner,
    every_method,
    every_stream,
    examples,
    pictures,
    quick,
)

# Parameters.


@every_method
def test_a_method_is_a_frozen_dataclass_of_its_contract_with_bounded_numbers(kind, name):
    cls = method_class(kind, name)
    assert issubclass(cls, KINDS[kind])
    assert is_dataclass(cls)
    assert cls() == cls()
    assert hash(cls()) == hash(cls())
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        with pytest.raises(FrozenInstanceError):
            setattr(cls(), field.name, field.default)
        if type(field.default) in (int, float):
            assert {type(bound) for bound in hints[field.name].__metadata__} & {Gt, Ge}, field.name
            assert {type(bound) for bound in hints[field.name].__metadata__} & {Lt, Le}, field.name


@every_method
def test_values_outside_the_bounds_are_refused_by_name(kind, name):
    cls = method_class(kind, name)
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        for bound in getattr(hints[field.name], "__metadata__", ()):
            match bound:
                case Gt(gt=limit) | Lt(lt=limit):
                    wrong = limit
                case Ge(ge=limit):
                    wrong = limit - 1
                case Le(le=limit):
                    wrong = limit + 1
            for value in (wrong, float("nan")):
                with pytest.raises(ValueError, match=f"{field.name} must be"):
                    cls(**{field.name: value})


def extremes(kind, name):
    """The method with each of its real numbers, and then all of them, at the lowest and the highest that it takes."""
    hints = get_type_hints(method_class(kind, name), include_extras=True)
    usual = quick(kind, name)
    low, high = {}, {}
    for field in fields(usual):
        for bound in getattr(hints[field.name], "__metadata__", ()) if type(field.default) is float else ():
            match bound:
                case Gt(gt=limit):
                    low[field.name] = math.nextafter(limit, math.inf)
                case Ge(ge=limit):
                    low[field.name] = limit
                case Lt(lt=limit):
                    high[field.name] = math.nextafter(limit, -math.inf)
                case Le(le=limit):
                    high[field.name] = limit
    singles = [{key: value} for end in (low, high) for key, value in end.items()]
    return [replace(usual, **change) for change in (*singles, low, high)]


@every_learner
def test_at_the_ends_of_its_bounds_a_method_learns_finite_numbers_or_says_that_it_diverged(kind, name):
    for method in extremes(kind, name):
        for n in (1, 40):
            try:
                made = method.fit(given := examples(n))
            except Diverged:
                continue
            answers = made.embed(given.features) if kind == "project" else made.logits(given.features).softmax(dim=1)
            assert answers.isfinite().all(), method


@every_stream
def test_at_the_ends_of_its_bounds_a_stream_answers_with_distributions_and_takes_its_own_states(name):
    for method in extremes("stream", name):
        stream = method.open(examples().text, 10)
        for feature in examples(200).features:
            answer = stream.observe(feature).combined
            torch.testing.assert_close(answer.sum(), torch.tensor(1.0), msg=str(method))
        method.open(examples().text, 10).restore(stream.snapshot())


@every_group
def test_at_the_ends_of_its_bounds_a_grouping_places_every_image(name):
    for method in extremes("group", name):
        assert bool(method.group(pictures(), 3).points.isfinite().all()), method


@every_method
def test_the_documentation_has_a_sentence_for_it(kind, name):
    assert method_class(kind, name).__doc__.partition(".")[0]


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown method 'nope'; choose one of multi_map, multi_sub, clip_kmeans"):
        method_class("group", "nope")


@pytest.mark.parametrize(("method", "function"), [(InMaP, fit_vision_proxies), (OnZeta, OnlineZeroShot)])
def test_functions_and_methods_have_the_same_defaults(method, function):
    parameters = inspect.signature(function).parameters
    assert {field.name: field.default for field in fields(method)} == {
        field.name: parameters[field.name].default for field in fields(method)
    }


# Progress.


@every_method
def test_progress_never_falls_and_can_end_the_work(kind, name):
    class Stop(Exception):
        pass

    shares: list[float] = []
    if KINDS[kind] is contracts.Fit:
        run = lambda progress: quick(kind, name).fit(examples(), progress=progress)  # noqa: E731
    elif kind == "group":
        run = lambda progress: quick("group", name).group(pictures(), 3, progress=progress)  # noqa: E731
    else:  # answers at once
        return
    run(lambda share, /, **figures: shares.append(share))
    assert shares == sorted(shares)
    assert all(0 < share <= 1 for share in shares)

    def stop(share: float, /, **figures: float) -> None:
        raise Stop

    if shares:
        with pytest.raises(Stop):
            run(stop)
