"""Which waiting jobs run next: every owner has a turn, and room is left for those who are there."""

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from covervlm.server.core.caller import Caller
from covervlm.server.core.fairness import FairQueue
from covervlm.server.engines.embedded.seats import Seats
from covervlm.server.engines.embedded.step_limits import StepLimits

CPU = StepLimits.for_device(torch.device("cpu"))
GPU = StepLimits.for_device(torch.device("cuda:0"))


@dataclass
class Waiting:
    owner: str
    rows: int = 1
    pixels: tuple[int, ...] = ()
    request: SimpleNamespace = field(init=False)

    def __post_init__(self):
        self.request = SimpleNamespace(caller=Caller(self.owner))


def queue(*jobs):
    waiting = FairQueue()
    for job in jobs:
        waiting.push(job.owner, job)
    return waiting


def owners(jobs):
    return Counter(job.owner for job in jobs for _ in range(job.rows))


def texts(owner, count, rows=1):
    return [Waiting(owner, rows) for _ in range(count)]


@pytest.mark.parametrize(("limits", "beside"), [(CPU, 16), (GPU, 28)])
def test_one_key_has_seven_eighths_when_alone_and_on_a_cpu_half_beside_others(limits, beside):
    now = [0.0]
    seats = Seats(32, limits, clock=lambda: now[0])
    assert owners(seats.take(queue(*texts("greedy", 40)), [])) == {"greedy": 28}
    assert owners(seats.take(queue(*texts("greedy", 40), Waiting("other")), [])) == {"greedy": beside, "other": 1}
    # The other reads its answer, and asks on.
    now[0] = 0.9
    assert owners(seats.take(queue(*texts("greedy", 40)), [])) == {"greedy": beside}
    now[0] = 2.0
    assert owners(seats.take(queue(*texts("greedy", 40)), [])) == {"greedy": 28}


def test_what_runs_counts_and_nobody_is_put_out_of_a_place():
    seats = Seats(32, CPU)
    running = texts("greedy", 28)
    assert owners(seats.take(queue(*texts("greedy", 9), *texts("other", 9)), running)) == {"other": 4}
    assert owners(seats.take(queue(*texts("greedy", 9)), running[:14] + texts("other", 4))) == {"greedy": 2}


def test_two_greedy_keys_fill_the_batch_between_them():
    taken = Seats(32, CPU).take(queue(*texts("one", 40), *texts("two", 40)), [])
    assert owners(taken) == {"one": 16, "two": 16}


def test_a_job_of_more_answers_than_half_runs_beside_others_by_itself():
    seats = Seats(32, CPU)
    waiting = queue(*texts("greedy", 2, rows=20), *texts("other", 1))
    assert owners(seats.take(waiting, [])) == {"greedy": 20, "other": 1}
    assert not seats.take(waiting, [*texts("greedy", 20), Waiting("other")])
    assert len(waiting) == 1


@pytest.mark.parametrize("limits", [CPU, GPU])
def test_without_keys_all_are_one_owner_who_has_all_places(limits):
    anonymous = Caller().owner
    assert owners(Seats(8, limits).take(queue(*texts(anonymous, 9)), [])) == {anonymous: 8}


@pytest.mark.parametrize("limits", [CPU, GPU])
def test_a_step_encodes_so_many_images_and_one_job_that_has_more(limits):
    pictures = [Waiting("one", pixels=(0,)) for _ in range(2 * limits.images)]
    assert len(Seats(32, limits).take(queue(*pictures), [])) == limits.images
    many = Waiting("one", pixels=(0,) * 99)
    assert Seats(32, limits).take(queue(many, *pictures), []) == [many]


@pytest.mark.parametrize("running", [1, 2, 8])
def test_the_smallest_batches_take_somebody(running):
    assert owners(Seats(running, CPU).take(queue(Waiting("one"), Waiting("two")), []))["one"] == 1
