import torch
from two_parts import choose, reached, shared_start

WORDS = 3


def affinity(seed: int) -> torch.Tensor:
    return torch.rand(WORDS + 20, 20, generator=torch.Generator().manual_seed(seed))


def best_next(rows: torch.Tensor, picked: list[int]) -> int:
    free = [place for place in range(rows.shape[1]) if place not in picked]
    return max(free, key=lambda place: float(rows[:, [*picked, place]].amax(1).sum()))


def test_the_image_alone_chooses_the_first_part_and_the_whole_objective_the_second():
    for seed in range(5):
        rows = affinity(seed)
        picked: list[int] = []
        for _ in range(4):
            picked.append(best_next(rows[WORDS:], picked))
        first, second = choose(rows, WORDS, 4, 3)
        assert first.tolist() == sorted(picked)
        for _ in range(3):
            picked.append(best_next(rows, picked))
        assert second.tolist() == sorted(picked[4:])


def test_the_first_part_is_the_same_whatever_is_asked():
    one, other = affinity(1), affinity(1)
    other[:WORDS] = 1 - other[:WORDS]
    assert choose(one, WORDS, 4, 3)[0].tolist() == choose(other, WORDS, 4, 3)[0].tolist()


def test_the_objective_counts_each_row_once_at_its_best_kept_token():
    rows = torch.tensor([[0.5, 1.0, 0.25], [1.0, 0.5, 0.75]])
    assert reached(rows, torch.tensor([0, 2])) == 1.5


def test_two_choices_share_what_stands_before_their_first_difference():
    assert shared_start([1, 2, 5, 7], [1, 2, 6, 7]) == 2
    assert shared_start([1, 2], [1, 2]) == 2
