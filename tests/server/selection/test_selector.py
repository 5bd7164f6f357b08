from dataclasses import replace

import pytest
import torch

from covervlm.pruners import get_pruner
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import GenerationRequest, Message, PruningPolicy, SamplingParams
from covervlm.server.models.base import ImageTokens, Layout, Part
from covervlm.server.selection.selector import Selector, budget_of, guiding_text, pruner_for

torch.manual_seed(0)
TOKENS = torch.randn(20, 6)
FEATURES = torch.randn(20, 5)


def tiled() -> ImageTokens:
    """Two crops of ten tokens each, read in turn; the last three positions are newlines, which no part holds."""
    crops = [Part(torch.arange(i, 20, 2), torch.arange(10 * i, 10 * i + 10), (2, 5)) for i in range(2)]
    return ImageTokens(Layout(23, tuple(crops)), TOKENS, FEATURES)


def run(policy: PruningPolicy, *images: ImageTokens):
    return Selector().select(policy, get_pruner(policy.method), images, text=torch.randn(3, 6))


@pytest.mark.parametrize(("method", "runs"), [("vision_coverage", 1), ("random", 1), ("mmtok", 3)])
def test_a_selection_that_no_question_can_change_is_made_once(method, runs, monkeypatch):
    pruner = get_pruner(method)
    made = []
    choose = type(pruner).choose
    monkeypatch.setattr(type(pruner), "choose", lambda self, *args: made.append(1) or choose(self, *args))
    selector, image = Selector(), tiled()
    for _ in range(3):
        selector.select(PruningPolicy(method=method, keep_tokens=6), pruner, [image], text=torch.randn(3, 6))
    assert len(made) == runs


def test_remembered_selections_differ_by_budget_and_seed():
    selector, image, pruner = Selector(), tiled(), get_pruner("random")

    def positions(keep: int, seed: int) -> list[int]:
        [kept], _ = selector.select(PruningPolicy(method="random", keep_tokens=keep), pruner, [image], None, seed)
        return kept.tolist()

    assert len(positions(6, 0)) == 6
    assert len(positions(8, 0)) == 8
    assert positions(6, 0) != positions(6, 1)
    assert positions(6, 0) == positions(6, 0)


def test_a_budget_is_spread_evenly_over_the_parts_rounding_down():
    [kept], [report] = run(PruningPolicy(keep_tokens=9, return_indices=True), tiled())
    assert report.kept == 8
    assert sum(position % 2 == 0 for position in report.indices) == 4
    assert kept.tolist() == sorted(report.indices)


def test_every_part_keeps_at_least_one_token():
    _, [report] = run(PruningPolicy(keep_tokens=1), tiled())
    assert report.kept == 2


def test_a_budget_that_covers_all_parts_leaves_the_image_unpruned_newlines_and_all():
    [kept], [report] = run(PruningPolicy(keep_tokens=20), tiled())
    assert kept is None
    assert (report.kept, report.total, report.coverage) == (23, 23, 1.0)


def test_kept_positions_are_ascending_over_all_parts():
    [kept], _ = run(PruningPolicy(keep_tokens=12, method="random"), tiled())
    assert kept.tolist() == sorted(set(kept.tolist()))


def test_random_draws_differently_in_every_part():
    _, [report] = run(PruningPolicy(keep_tokens=10, method="random", return_indices=True), tiled())
    first, second = ([i // 2 for i in report.indices if i % 2 == side] for side in (0, 1))
    assert first != second


def test_a_list_gives_each_image_its_own_budget():
    _, reports = run(PruningPolicy(keep_tokens=(4, 20)), tiled(), tiled())
    assert [report.kept for report in reports] == [4, 23]


def test_a_list_of_the_wrong_length_is_refused():
    with pytest.raises(InvalidRequest, match="2 counts for 1 images"):
        run(PruningPolicy(keep_tokens=(4, 4)), tiled())


@pytest.mark.parametrize(("ratio", "count"), [(0.001, 1), (0.2, 4), (0.5, 10), (1.0, 20)])
def test_a_ratio_is_of_the_prunable_tokens_and_keeps_at_least_one(ratio, count):
    assert budget_of(PruningPolicy(keep_ratio=ratio), 0, 1, 20) == count


def test_no_budget_means_no_pruning():
    [kept], _ = run(PruningPolicy(), tiled())
    assert kept is None


def test_a_coverage_budget_keeps_just_enough_in_every_part():
    _, [report] = run(PruningPolicy(coverage=0.6), tiled())
    assert report.coverage >= 0.6
    _, [fewer] = run(PruningPolicy(keep_tokens=report.kept - 2), tiled())
    assert fewer.coverage < report.coverage


def test_a_coverage_budget_is_clipped_to_its_bounds():
    _, [report] = run(PruningPolicy(coverage=0.01, min_tokens=8), tiled())
    assert report.kept == 8
    _, [report] = run(PruningPolicy(coverage=1.0, max_tokens=6), tiled())
    assert report.kept == 6


def test_a_coverage_budget_needs_a_method_that_picks_in_order():
    with pytest.raises(InvalidRequest, match=r"uniform.*mmtok"):
        pruner_for(PruningPolicy(method="uniform", coverage=0.9), {})


def say(role: str, text: str) -> Message:
    return Message(role, (text,))


@pytest.mark.parametrize(
    ("guide", "expected"),
    [
        ("last_user", "third"),
        ("first_user", "first"),
        ("all_user", "first\nthird"),
        ("agent", "third\nhinted"),
        ("none", ""),
    ],
)
def test_the_guide_chooses_whose_words_count(guide, expected):
    chat = (say("system", "be brief"), say("user", "first"), say("assistant", "second"), say("user", "third"))
    request = GenerationRequest("test", chat, pruning=PruningPolicy(guide=guide), hint="hinted")
    assert guiding_text(request) == expected


def test_the_policys_own_question_guides_in_place_of_the_prompts():
    request = GenerationRequest("r", (Message("user", ("Which color?",)),), hint="red")
    asked = replace(request, pruning=PruningPolicy(question="a triangle", guide="first_user"))
    assert guiding_text(asked) == "a triangle"
    assert (
        guiding_text(replace(asked, pruning=PruningPolicy(question="a triangle", guide="agent"))) == "a triangle\nred"
    )


def test_a_random_selection_is_drawn_from_the_policys_seed_before_the_requests():
    request = GenerationRequest("r", (), SamplingParams(seed=5))
    assert request.selection_seed == 5
    assert replace(request, pruning=PruningPolicy(seed=0)).selection_seed == 0
    assert replace(request, sampling=SamplingParams()).selection_seed == 0
