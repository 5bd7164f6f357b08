"""The attack harness's own arithmetic, without a server."""

import math

import pytest

from tests.e2e.attack.figures import Asked, Figures, asked, decided, undecided
from tests.e2e.attack.pace import Slice
from tests.e2e.attack.traffic import Traffic

MIB = 2**20


def figures(slow, kept, **problems):
    made = Figures("an attack", slow=slow, kept=kept, problems=dict(problems))
    made.judge_time()
    return made


def test_the_median_of_three_tries_decides_and_all_are_told():
    found = decided([figures(300, 0.4), figures(20, 0.6), figures(280, 0.7)])
    assert found.tries == [(300, 0.4), (20, 0.6), (280, 0.7)]
    assert (found.slow, found.kept) == (280, 0.6)
    assert set(found.problems) == {"a"}


def test_tries_end_once_most_of_them_must_miss_the_same():
    slow, few, fine = figures(300, 0.9), figures(20, 0.4), figures(20, 0.9)
    assert undecided([slow], 3)
    assert undecided([slow, few], 3)
    assert undecided([slow, fine], 3)
    assert not undecided([slow, figures(280, 0.4)], 3)
    assert not undecided([slow, few, fine], 3)
    assert set(decided([slow, figures(280, 0.4)]).problems) == {"a"}


def test_what_is_no_matter_of_time_counts_in_whichever_try_it_was():
    found = decided([figures(20, 0.9, d="3 more files"), figures(20, 0.9), figures(20, 0.9)])
    assert found.problems == {"d": "3 more files"}


@pytest.mark.parametrize(
    ("sent", "pace"),
    [
        ((0, 0), (0, 0)),
        ((3, 3 * MIB), (1, MIB)),
        ((4, 63 * MIB), (4, 16 * MIB)),
        ((300, 64 * MIB), (256, 64 * MIB)),
    ],
)
def test_a_control_sends_no_more_than_the_attack(sent, pace):
    assert Traffic(*sent).at_pace_of(1).shape == pytest.approx(pace)


def test_a_share_counts_requests_by_the_time_that_their_kind_takes():
    quiet = Slice.of([Asked("slow", 0, 0.9, True), Asked("quick", 0.9, 0.1, True)], 0, 1)
    same = Slice.of([Asked("slow", 0, 1.8, True), Asked("quick", 1.8, 0.2, True)], 0, 2)
    assert same.share_of(quiet) == pytest.approx(0.5)
    assert same.slower_than(quiet) == pytest.approx({"slow": 2, "quick": 2})


def test_requests_without_an_answer_count_for_nothing():
    quiet = Slice.of([Asked("chat", 0, 1, True)], 0, 1)
    under = Slice.of([Asked("chat", 0, 1, False)], 0, 1)
    assert under.share_of(quiet) == 0
    assert under.slower_than(quiet) == {"chat": math.inf}


def test_entries_of_a_stretch_are_those_that_touch_it():
    lines = ["chat 0.0 0.5 200", "paused", "chat 1.0 3.0 200", "list 4.5 0.1 0", "chat 9.0 1.0 200"]
    assert asked(lines, 2, 5) == [Asked("chat", 1.0, 3.0, True), Asked("list", 4.5, 0.1, False)]
