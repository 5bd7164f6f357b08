"""The workers' side of pruning, on tower outputs made up here."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from covervlm.pruners import PruneInput, get_pruner
from covervlm.server.engines.vllm.plugin.plan import Plan
from covervlm.server.engines.vllm.plugin.selection import Selections, in_batches
from covervlm.server.models.base import ImageTokens
from covervlm.server.models.qwen2_5_vl import Qwen2_5_VL

WORDS = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


class PlainGrid(Qwen2_5_VL):
    """One grid of any size, and the objective's own parameters."""

    pruner_params: ClassVar = {}


def plan(image: int, question=(3, 4), method="mmtok", kept=4) -> Plan:
    return Plan(bytes([image] * 16), (4, 6), method, budget=kept, kept=kept, question=question)


def output(seed: int) -> ImageTokens:
    generator = torch.Generator().manual_seed(seed)
    layout = PlainGrid(None).layout((4, 6))
    return ImageTokens(layout, torch.randn(24, 16, generator=generator), torch.randn(24, 8, generator=generator))


@pytest.fixture
def selections():
    return Selections(PlainGrid(None), embed=lambda ids: WORDS[ids], cache_bytes=10**6)


def test_a_step_of_many_images_selects_as_the_pruner_does_for_each(selections):
    plans = [plan(i, question=(i, i + 1, 9)[: 1 + i % 3], kept=1 + i) for i in range(6)]
    plans += [plan(i, method="divprune", question=()) for i in range(6)]
    looked = [(one, output(one.image[0])) for one in plans[:6]]
    results = selections.run(plans, looked, CPU)
    for one, (tokens, positions) in zip(plans, results, strict=True):
        seen = output(one.image[0])
        text = WORDS[list(one.question)] if one.question else None
        [expected] = get_pruner(one.method).select([PruneInput(seen.tokens, seen.features, text)], one.kept)
        assert positions.tolist() == expected.tolist()
        assert torch.equal(tokens, seen.tokens[expected])


def test_the_tower_looks_once_at_an_image_whatever_is_asked(selections):
    first, second = plan(1, question=(1,)), plan(1, question=(2,))
    assert selections.missing([first, second]) == [0]
    selections.run([first, second], [(first, output(1))], CPU)
    assert selections.missing([plan(1, question=(7,)), plan(2)]) == [1]


def test_without_a_cache_the_tower_looks_every_time():
    selections = Selections(PlainGrid(None), lambda ids: WORDS[ids], cache_bytes=0)
    selections.run([plan(1)], [(plan(1), output(1))], CPU)
    assert selections.missing([plan(1)]) == [0]


def test_numbers_that_overflowed_in_a_tower_harm_no_other_image(selections):
    spoilt = output(1)
    spoilt.tokens[3, 2], spoilt.features[5, 0] = torch.nan, torch.inf
    (tokens, positions), (_, others) = selections.run(
        [plan(1), plan(2)], [(plan(1), spoilt), (plan(2), output(2))], CPU
    )
    assert len(tokens) == len(set(positions.tolist())) == 4
    seen = output(2)
    [expected] = get_pruner("mmtok").select([PruneInput(seen.tokens, seen.features, WORDS[[3, 4]])], 4)
    assert others.tolist() == expected.tolist()


@pytest.mark.parametrize("method", ["mmtok", "none"])
def test_a_plan_survives_the_way_to_the_workers(method):
    parameters = (("name", "größe"), ("regions", 3), ("share", 0.1), ("sorted", True))
    sent = Plan(bytes(range(240, 256)), (336, 90), method, 64, 64, (5, 2**31), -(2**63), parameters, "released")
    assert Plan.from_tensor(sent.to_tensor()) == sent
    moving = replace(sent, shape=(3, 336, 90), frames=6, fps=29.97)
    assert Plan.from_tensor(moving.to_tensor()) == moving


def test_parameters_reach_the_method_and_share_the_towers_output(selections):
    own = replace(plan(1, kept=6), parameters=(("alpha", 40.0), ("tau_vision", 0.9)))
    seen = output(1)
    assert selections.missing([plan(1), own]) == [0]
    _, (_, positions) = selections.run([plan(1, kept=6), own], [(plan(1), seen)], CPU)
    pruner = get_pruner("mmtok", alpha=40.0, tau_vision=0.9)
    [expected] = pruner.select([PruneInput(seen.tokens, seen.features, WORDS[[3, 4]])], 6)
    assert positions.tolist() == expected.tolist()


def test_digests_tell_apart_whatever_changes_what_is_read():
    plans = [plan(1), plan(2), plan(1, kept=5), plan(1, question=(4, 3)), plan(1, method="vision_coverage")]
    plans += [replace(plan(1), parameters=(("alpha", alpha),)) for alpha in (0.4, 0.6)]
    plans += [replace(plan(1), recipe="released")]
    plans += [replace(plan(1), frames=frames, fps=fps) for frames, fps in ((4, 2.0), (4, 3.0), (3, 2.0))]
    assert len({one.digest for one in plans}) == len(plans)
    assert plan(1).whole().digest == plan(1, question=(8,), method="divprune").whole().digest


def test_a_steps_images_come_in_batches_of_bounded_tower_work():
    assert in_batches([4, 5, 6, 9], [3, 3, 3, 3], most=6) == [[4, 5], [6, 9]]
    assert in_batches([1, 2, 3], [2, 90, 2], most=6) == [[1], [2], [3]]
    assert in_batches([], [], most=6) == []
