from speed.streamed import Streamed
from vllm_load import Run, row


def run(requests: int, seconds: float, first: float = 1.0, prompt: int = 79) -> Run:
    return Run([Streamed(first_event=first, prompt_tokens=prompt) for _ in range(requests)], seconds)


def test_ratios_compare_loads_of_the_same_round():
    baselines = [run(10, 10.0), run(10, 20.0), run(10, 40.0)]
    runs = [run(10, 5.0), run(10, 5.0), run(10, 10.0, first=2.0)]
    assert row("mmtok 64", 8, runs, baselines) == "| 8 | mmtok 64 | 2.00 | 4.00 (2.00-4.00) | 1.00 | 2.00 | 79 |"


def test_one_round_has_no_range():
    assert row("unpruned", 1, [run(4, 8.0)], [run(4, 8.0)]) == "| 1 | unpruned | 0.50 | 1.00 | 1.00 | 1.00 | 79 |"
