"""Recipe "released": budgets, crops and words as the methods' released programs have them, spelled out here by hand."""

import pytest
import torch

from covervlm.pruners import get_pruner
from covervlm.server.core.generation import PruningPolicy
from covervlm.server.models.base import ImageTokens, Layout, Part
from covervlm.server.models.llava import Llava
from covervlm.server.models.qwen2_5_vl import Qwen2_5_VL
from covervlm.server.selection.selector import Selector, budget_of

SIDE = 4


def tiled(down: int, across: int) -> ImageTokens:
    """A base crop and down x across tiles of 4 x 4 tokens, read as LLaVA-NeXT reads them: the tiles row by row of
    their merged grid, with a newline after each row."""
    patches, generator = SIDE**2, torch.Generator().manual_seed(down * 10 + across)
    parts = [Part(torch.arange(patches), torch.arange(patches), (SIDE, SIDE))]
    for tile in range(down * across):
        top, left = tile // across * SIDE, tile % across * SIDE
        places = [
            patches + (top + row) * (across * SIDE + 1) + left + column for row in range(SIDE) for column in range(SIDE)
        ]
        rows = torch.arange((tile + 1) * patches, (tile + 2) * patches)
        parts.append(Part(torch.tensor(places), rows, (SIDE, SIDE)))
    total = patches + down * SIDE * (across * SIDE + 1)
    tokens = torch.randn((1 + down * across) * patches, 8, generator=generator)
    return ImageTokens(Layout(total, tuple(parts)), tokens, tokens)


def kept(image, **policy):
    policy = PruningPolicy(**policy)
    [positions], [report] = Selector().select(policy, get_pruner(policy.method), [image], None)
    return positions, report


def farthest_first(tokens: torch.Tensor, count: int) -> list[int]:
    """DivPrune by loops over all rows (n, d) at once."""
    x = torch.nn.functional.normalize(tokens.double(), dim=1)
    distance = [[1 - float(a @ b) for b in x] for a in x]
    everything = range(len(x))
    picked = [max(everything, key=lambda i: min(distance[i][j] for j in everything if j != i))]
    while len(picked) < count:
        left = [i for i in everything if i not in picked]
        picked.append(max(left, key=lambda i: min(distance[i][j] for j in picked)))
    return picked


@pytest.mark.parametrize(("down", "across"), [(1, 2), (2, 2), (3, 1)])
def test_divprune_picks_over_all_crops_at_once(down, across):
    image = tiled(down, across)
    whole = image.layout.rows
    positions, report = kept(image, method="divprune", keep_tokens=11, recipe="released")
    assert sorted(whole[positions].tolist()) == sorted(farthest_first(image.tokens, 11))
    assert positions.tolist() == sorted(positions.tolist())
    assert report.kept == 11
    alone, _ = kept(image, method="divprune", keep_tokens=11)
    share = 11 // (1 + down * across)
    for crop in range(1 + down * across):
        rows = [row for row in whole[alone].tolist() if row // 16 == crop]
        assert sorted(row - 16 * crop for row in rows) == sorted(
            farthest_first(image.tokens[16 * crop : 16 * crop + 16], share)
        )


@pytest.mark.parametrize("recipe", ["default", "released"])
@pytest.mark.parametrize(("down", "across"), [(1, 2), (2, 2), (3, 1)])
def test_a_count_per_crop_holds_whatever_the_number_of_crops(down, across, recipe):
    image = tiled(down, across)
    positions, report = kept(image, method="vision_coverage", keep_tokens_per_crop=3, recipe=recipe)
    crops = [int(row) // 16 for row in image.layout.rows[positions]]
    assert [crops.count(crop) for crop in range(1 + down * across)] == [3] * (1 + down * across)
    assert report.kept == 3 * (1 + down * across)
    assert kept(image, method="vision_coverage", keep_tokens_per_crop=16)[1].kept == image.layout.total


@pytest.mark.parametrize(("ratio", "total", "default", "released"), [(0.2, 1024, 205, 204), (0.05, 999, 50, 49)])
def test_a_ratio_is_truncated(ratio, total, default, released):
    assert budget_of(PruningPolicy(keep_ratio=ratio), 0, 1, total) == default
    assert budget_of(PruningPolicy(keep_ratio=ratio, recipe="released"), 0, 1, total) == released
    assert budget_of(PruningPolicy(keep_ratio=0.001, recipe="released"), 0, 1, 9) == 1


class Spelled:
    """Stands for a chat processor: says which words were to be tokenised, and how."""

    @staticmethod
    def word_ids(words):
        return ["inside", *words]

    @staticmethod
    def raw_ids(words):
        return ["alone", *words]


QUESTION = "What's left of the cup,  a  spoon?"


def test_qwens_words_keep_their_punctuation_and_get_no_space():
    qwen = Qwen2_5_VL(None)
    said = ["alone", "Question:", "What's", "left", "of", "the", "cup,", "a", "spoon?"]
    assert qwen.word_ids(Spelled, QUESTION, "released") == said
    assert qwen.word_ids(Spelled, " ", "released") == []
    ours = ["inside", "Question", "What", "s", "left", "of", "the", "cup", "a", "spoon"]
    assert qwen.word_ids(Spelled, QUESTION) == ours


def test_llavas_words_are_the_same_by_either_recipe():
    llava = object.__new__(Llava)
    assert llava.word_ids(Spelled, QUESTION, "released") == llava.word_ids(Spelled, QUESTION)
