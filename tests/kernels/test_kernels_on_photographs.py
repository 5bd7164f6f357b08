"""Selection on photographs: the definition's picks, also where patches are alike or the same."""

import numpy as np
import pytest
import torch
from PIL import Image
from references import float64_affinity, float64_greedy, objective

from covervlm.kernels import coverage_affinity, greedy_max_coverage
from covervlm.pruners import PruneInput, get_pruner, pruner_names
from tests.zoo.photographs import PHOTOGRAPHS, photograph

SIDE, PATCH = 168, 14


def patches(name):
    """(144, 48) float32: the picture's patches at 4 x 4 pixels each, of which flat areas have many that are equal."""
    small = photograph(name).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    pixels = np.asarray(small, np.float32).reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH, 3).swapaxes(1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels[:, :, ::4, ::4].reshape(144, -1))) / 255


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_kernels_pick_what_the_definition_picks_also_among_equal_patches(name):
    """Where float32 cannot tell candidates apart that float64 can, what they cover is the same."""
    seen = patches(name)
    affinity = coverage_affinity(None, seen, seen, tau_text=0.02, tau_vision=0.2, alpha=0.5)
    torch.testing.assert_close(
        affinity.double(), float64_affinity(None, seen, seen, 0.02, 0.2, 0.5), atol=1e-6, rtol=1e-4
    )
    expected, near_tie = float64_greedy(affinity, 24)
    for backend in ("torch", "numba"):
        picks = greedy_max_coverage(affinity, 24, backend=backend).tolist()
        assert len(set(picks)) == 24
        assert picks == expected or near_tie
        assert objective(affinity, picks) == pytest.approx(objective(affinity, expected), rel=1e-4)


@pytest.mark.parametrize("name", ["horse.png", "page.png", "logo.png"])
def test_no_method_keeps_a_copy_while_something_else_is_not_covered(name):
    """Of patches that point in one direction, which is all that the objective sees, coverage takes one before two."""
    seen = patches(name)
    directions = torch.nn.functional.normalize(seen, dim=1)
    kinds = torch.unique((directions * 1000).round(), dim=0, return_inverse=True)[1]
    budget = 16
    assert budget < int(kinds.max()) + 1 < len(seen), "the picture has copies, and enough that are none"
    [kept] = get_pruner("vision_coverage").select([PruneInput(seen, seen, grid=(12, 12))], budget)
    assert len(set(kinds[kept].tolist())) == budget


@pytest.mark.parametrize("method", pruner_names())
def test_every_method_keeps_as_many_tokens_as_asked_of_a_picture_of_copies(method):
    seen = patches("horse.png")
    words = torch.randn(3, seen.shape[1], generator=torch.Generator().manual_seed(0))
    picture = PruneInput(seen, seen, words, cls_attention=seen.mean(dim=1), grid=(12, 12))
    for budget in (1, 16, 143, 144):
        [kept] = get_pruner(method).select([picture], budget)
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert len(kept) == (144 if method in ("none", "resize") else budget)
