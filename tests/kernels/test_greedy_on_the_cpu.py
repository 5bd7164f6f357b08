"""How the CPU greedy uses the machine: compiled ahead, cached where it can be, no more threads than torch's."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from numba.core import caching

from covervlm.kernels import greedy_max_coverage, greedy_numba, warm_up


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Recorder:
    """Stands in for the thread pool and counts what it is given."""

    def __init__(self):
        self.pool, self.submitted = ThreadPoolExecutor(4), 0

    def submit(self, *call):
        self.submitted += 1
        return self.pool.submit(*call)


@pytest.mark.parametrize(("items", "threads", "others"), [(8, 1, 0), (8, 3, 2), (2, 3, 1), (1, 3, 0)])
def test_a_batch_runs_on_as_many_threads_as_torch_may_use(items, threads, others, torch_threads, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(greedy_numba, "_pool", lambda: recorder)
    torch_threads(threads)
    batch = torch.rand(items, 12, 30, generator=torch.Generator().manual_seed(0))
    picks = greedy_max_coverage(batch, 5, backend="numba")
    assert recorder.submitted == others
    assert torch.equal(picks, greedy_max_coverage(batch, 5, backend="torch"))


def test_calls_from_many_threads_at_once_do_not_disturb_one_another():
    batch = torch.rand(24, 40, 60, generator=torch.Generator().manual_seed(1))
    expected = [greedy_max_coverage(one, 20, backend="torch").tolist() for one in batch]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: greedy_max_coverage(one, 20, backend="numba").tolist(), batch))
    assert found == expected


def test_the_global_interpreter_lock_is_released_while_it_picks():
    assert greedy_numba._select_share.targetoptions["nogil"]


def test_nothing_is_left_to_compile_after_warm_up():
    warm_up()
    compiled = list(greedy_numba._select_share.overloads)
    matrix = torch.rand(2, 20, 30)
    greedy_max_coverage(matrix[0], 4, backend="numba")
    greedy_max_coverage(matrix.half(), [2, 4], columns=torch.tensor([30, 7]), backend="numba")
    greedy_max_coverage(matrix, torch.tensor(3), allowed=torch.rand(2, 30) < 0.5, backend="numba")
    greedy_max_coverage(matrix.mT.contiguous().mT, 3, check_finite=False, backend="numba")
    assert list(greedy_numba._select_share.overloads) == compiled


def test_it_compiles_where_no_directory_can_hold_the_cache(monkeypatch):
    def double(value):
        return value * 2

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert greedy_numba._compiled()(double)(21) == 42
