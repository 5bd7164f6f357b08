"""Every method against a slow version of its definition, written here in float64 numpy with plain loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from covervlm.pruners import PruneInput, get_pruner
from covervlm.pruners.similarity import centred, plain


def make_input(seed, n=48, d=16, d_v=12, m=5, excluded=0, grid=None):
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.ones(n, dtype=torch.bool)
    allowed[torch.randperm(n, generator=generator)[:excluded]] = False
    return PruneInput(
        tokens=torch.randn(n, d, generator=generator),
        features=torch.randn(n, d_v, generator=generator) + 0.5,
        text=torch.randn(m, d, generator=generator) if m else None,
        allowed=allowed,
        grid=grid,
        cls_attention=torch.rand(n, generator=generator),
        seed=seed,
    )


def unit(a):
    a = a.double().numpy()
    return a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-8)


def softmax(a):
    a = np.exp(a - a.max(axis=1, keepdims=True))
    return a / a.sum(axis=1, keepdims=True)


def affinity_rows(image, tau_text=0.02, tau_vision=0.2, alpha=0.5):
    x, v = unit(image.tokens), unit(image.features)
    vision = alpha * softmax(v @ v.T / tau_vision) / len(v)
    if image.text is None or not len(image.text):
        return np.empty((0, len(x))), vision
    return softmax(unit(image.text) @ x.T / tau_text) / len(image.text), vision


def candidates(image):
    return [j for j, ok in enumerate(image.allowed.tolist()) if ok]


def slow_coverage(matrix, allowed, k):
    picked, covered = [], np.zeros(len(matrix))
    for _ in range(k):
        left = [j for j in allowed if j not in picked]
        gains = [np.maximum(matrix[:, j] - covered, 0).sum() for j in left]
        best = left[int(np.argmax(gains))]
        picked.append(best)
        covered = np.maximum(covered, matrix[:, best])
    return sorted(picked)


def slow_divprune(image, k):
    x, allowed = unit(image.tokens), candidates(image)

    def distance(i, j):
        return 1 - float(x[i] @ x[j])

    picked = [max(allowed, key=lambda i: min(distance(i, j) for j in allowed if j != i))]
    while len(picked) < k:
        left = [i for i in allowed if i not in picked]
        picked.append(max(left, key=lambda i: min(distance(i, j) for j in picked)))
    return sorted(picked)


def min_max(scores):
    return (scores - scores.min()) / (scores.max() - scores.min())


def centred_units(tokens):
    """By hand: the mean off, and every channel divided by its deviation where one has most of the variance."""
    rest = tokens.double().numpy()
    rest = rest - sum(rest) / len(rest)
    variances = [float(np.mean(channel**2)) for channel in rest.T]
    if max(variances) > sum(variances) / 2:
        rest = np.stack([channel / math.sqrt(v) for channel, v in zip(rest.T, variances, strict=True)], axis=1)
    return unit(torch.from_numpy(rest))


def distinctiveness(tokens):
    x = unit(tokens)
    others = [[float(x[i] @ x[j]) for j in range(len(x)) if j != i] for i in range(len(x))]
    return min_max(np.array([-sum(cosines) / len(cosines) for cosines in others]))


def slow_divprune_cen(image, k):
    allowed = candidates(image)
    x, weights = centred_units(image.tokens[allowed]), distinctiveness(image.tokens[allowed])
    places = range(len(allowed))

    def score(i, others):
        return weights[i] * min(1 - float(x[i] @ x[j]) for j in others if j != i)

    picked = [max(places, key=lambda i: score(i, places))]
    while len(picked) < k:
        picked.append(max((i for i in places if i not in picked), key=lambda i: score(i, picked)))
    return sorted(allowed[i] for i in picked)


def slow_scope(image, k):
    allowed, v = candidates(image), unit(image.features)
    picked, covered = [], [0.0] * len(v)
    for _ in range(k):
        scores = {
            j: float(image.cls_attention[j]) * sum(max(0.0, float(v[i] @ v[j]) - covered[i]) for i in range(len(v)))
            for j in allowed
            if j not in picked
        }
        picked.append(max(scores, key=scores.get))
        covered = [max(covered[i], float(v[i] @ v[picked[-1]])) for i in range(len(v))]
    return sorted(picked)


def slow_holov(image, k, regions):
    """Seats one by one: the region with the largest quotient sends its best token that is left."""
    allowed, v = candidates(image), unit(image.features)
    rows, columns = image.grid

    def region(j):
        return (j // columns * min(rows, regions) // rows, j % columns * min(columns, regions) // columns)

    def variance(j):
        cosines = [float(v[j] @ v[i]) for i in allowed if i != j and region(i) == region(j)]
        return float(np.var(cosines)) if len(cosines) > 1 else 0.0

    attention = {j: float(image.cls_attention[j]) for j in allowed}
    variances = {j: variance(j) for j in allowed}
    means = [sum(values.values()) / len(allowed) for values in (attention, variances)]
    scores = {j: attention[j] / means[0] + variances[j] / means[1] for j in allowed}
    totals = {}
    for j in allowed:
        totals[region(j)] = totals.get(region(j), 0.0) + scores[j]
    picked = []
    for _ in range(k):
        seats = {r: sum(region(j) == r for j in picked) for r in totals}
        left = [j for j in allowed if j not in picked]
        winner = max({region(j) for j in left}, key=lambda r: totals[r] / (seats[r] + 0.5))
        picked.append(max((j for j in left if region(j) == winner), key=scores.get))
    return sorted(picked)


def slow_cdpruner(image, k, cen=False):
    """Greedy MAP by determinants, computed afresh for every candidate."""
    allowed = candidates(image)
    tokens = image.tokens[allowed]
    relevance = np.ones(len(allowed))
    if image.clip_cosines is not None:
        relevance = min_max(-image.clip_cosines[allowed].double().numpy())
    elif image.text is not None and len(image.text):
        relevance = min_max((unit(tokens) @ unit(image.text).T).mean(axis=1))
    if cen:
        relevance = relevance * distinctiveness(tokens)
    x = centred_units(tokens) if cen else unit(tokens)
    similarity = x @ x.T
    np.fill_diagonal(similarity, 1.0)
    kernel = np.diag(relevance) @ similarity @ np.diag(relevance)
    picked = []
    for _ in range(k):
        left = [j for j in range(len(allowed)) if j not in picked]
        picked.append(max(left, key=lambda j: np.linalg.det(kernel[np.ix_([*picked, j], [*picked, j])])))
    return sorted(allowed[j] for j in picked)


def slow_top(scores, allowed, k):
    return sorted(sorted(allowed, key=lambda j: (-scores[j], j))[:k])


@pytest.mark.parametrize("excluded", [0, 17])
@pytest.mark.parametrize("m", [0, 5])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_coverage_methods_equal_a_full_scan_per_pick(k, m, excluded):
    image = make_input(seed=k, m=m, excluded=excluded)
    text, vision = affinity_rows(image)
    rows = {"mmtok": np.concatenate([text, vision]), "vision_coverage": vision, "text_coverage": text if m else vision}
    for name, matrix in rows.items():
        (kept,) = get_pruner(name).select([image], k)
        assert kept.tolist() == slow_coverage(matrix, candidates(image), k), name


def test_coverage_methods_use_their_parameters():
    image, params = make_input(seed=4), {"tau_text": 0.5, "tau_vision": 0.7, "alpha": 2.0}
    (kept,) = get_pruner("mmtok", **params).select([image], 10)
    assert kept.tolist() == slow_coverage(np.concatenate(affinity_rows(image, **params)), candidates(image), 10)


@pytest.mark.parametrize("excluded", [0, 17])
@pytest.mark.parametrize("k", [1, 2, 9, 30])
def test_divprune_equals_pairwise_loops(k, excluded):
    image = make_input(seed=100 + k, excluded=excluded)
    (kept,) = get_pruner("divprune").select([image], k)
    assert kept.tolist() == slow_divprune(image, k)


@pytest.mark.parametrize("excluded", [0, 17])
@pytest.mark.parametrize("m", [0, 5])
@pytest.mark.parametrize("k", [1, 2, 9, 25])
def test_cdpruner_equals_determinants_by_definition(k, m, excluded):
    image = make_input(seed=200 + k, d=40, m=m, excluded=excluded)
    (kept,) = get_pruner("cdpruner").select([image], k)
    assert kept.tolist() == slow_cdpruner(image, k)
    (kept,) = get_pruner("cdpruner_cen").select([image], k)
    assert kept.tolist() == slow_cdpruner(image, k, cen=True)


@pytest.mark.parametrize("excluded", [0, 17])
@pytest.mark.parametrize("k", [1, 9, 25])
def test_cdpruner_as_released_prefers_what_clip_finds_least_like_the_question(k, excluded):
    image = make_input(seed=230 + k, d=40, excluded=excluded)
    image = replace(image, clip_cosines=torch.rand(48, generator=torch.Generator().manual_seed(k)) - 0.5)
    for name in ("cdpruner", "cdpruner_cen"):
        (kept,) = get_pruner(name, relevance="clip").select([image], k)
        assert kept.tolist() == slow_cdpruner(image, k, cen=name == "cdpruner_cen")


def test_cdpruner_as_released_wants_clips_cosines_where_there_is_a_question():
    image, released = make_input(seed=3, d=40), get_pruner("cdpruner", relevance="clip")
    with pytest.raises(ValueError, match="needs clip_cosines"):
        released.select([image], 5)
    with pytest.raises(ValueError, match="clip_cosines of input 0 has shape"):
        released.select([replace(image, clip_cosines=torch.zeros(7))], 5)
    silent = replace(image, text=None)
    assert released.select([silent], 5)[0].tolist() == slow_cdpruner(silent, 5)


def test_cdpruner_makes_no_more_of_its_kernel_than_the_picks_need():
    """It equals the determinants over more than one block of rows, and only the tokens decide."""
    image = make_input(seed=12, n=80, d=96)
    (kept,) = get_pruner("cdpruner").select([image], 45)
    assert kept.tolist() == slow_cdpruner(image, 45)
    other = replace(image, features=image.features.flip(0))
    assert get_pruner("cdpruner").select([other], 45)[0].tolist() == kept.tolist()


def dominated(image):
    """The input with one channel whose variance is most of all."""
    tokens = image.tokens.clone()
    tokens[:, 3] *= 40
    return replace(image, tokens=tokens)


@pytest.mark.parametrize("change", [lambda image: image, dominated])
@pytest.mark.parametrize("excluded", [0, 17])
@pytest.mark.parametrize("k", [1, 2, 9, 30])
def test_divprune_on_centred_tokens_equals_loops(k, excluded, change):
    image = change(make_input(seed=300 + k, excluded=excluded))
    (kept,) = get_pruner("divprune_cen").select([image], k)
    assert kept.tolist() == slow_divprune_cen(image, k)


def test_cdpruner_on_centred_tokens_standardises_a_channel_that_dominates():
    image = dominated(make_input(seed=8, d=40))
    (kept,) = get_pruner("cdpruner_cen").select([image], 12)
    assert kept.tolist() == slow_cdpruner(image, 12, cen=True)


def test_what_all_tokens_share_changes_no_similarity_of_centred_tokens():
    image = make_input(seed=6)
    moved = replace(image, tokens=image.tokens + 3 * torch.randn(16, generator=torch.Generator().manual_seed(1)))
    for one, other in zip(centred(image.tokens)[:1], centred(moved.tokens)[:1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert not torch.equal(plain(image.tokens)[0], plain(moved.tokens)[0])


@pytest.mark.parametrize("excluded", [0, 17])
@pytest.mark.parametrize("k", [1, 2, 9, 30])
def test_scope_equals_gain_times_saliency_by_loops(k, excluded):
    image = make_input(seed=400 + k, excluded=excluded)
    (kept,) = get_pruner("scope").select([image], k)
    assert kept.tolist() == slow_scope(image, k)


@pytest.mark.parametrize("regions", [1, 3, 4])
@pytest.mark.parametrize("excluded", [0, 17])
@pytest.mark.parametrize("k", [1, 2, 9, 30])
def test_holov_equals_seats_dealt_one_by_one(k, excluded, regions):
    image = make_input(seed=500 + k, excluded=excluded, grid=(6, 8))
    (kept,) = get_pruner("holov", regions=regions).select([image], k)
    assert kept.tolist() == slow_holov(image, k, regions)


def test_holov_keeps_something_of_every_region_where_attention_is_all_in_one():
    attention = torch.full((64,), 1e-3)
    attention[:8] = 1.0
    image = replace(make_input(seed=1, n=64, grid=(8, 8)), cls_attention=attention)
    (kept,) = get_pruner("holov", regions=2).select([image], 16)
    assert {(j // 32, j % 8 // 4) for j in kept.tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    (attended,) = get_pruner("cls_attention").select([image], 8)
    assert attended.tolist() == list(range(8))


def test_cdpruner_fills_up_by_relevance_when_the_kernel_has_no_volume_left():
    image = make_input(seed=3, n=20, d=4)
    first = slow_cdpruner(image, 4)
    relevance = (unit(image.tokens) @ unit(image.text).T).mean(axis=1)
    rest = sorted((j for j in range(20) if j not in first), key=lambda j: -relevance[j])
    (kept,) = get_pruner("cdpruner").select([image], 9)
    assert kept.tolist() == sorted(first + rest[:5])


@pytest.mark.parametrize("excluded", [0, 17])
def test_cls_attention_keeps_the_most_attended(excluded):
    image = make_input(seed=5, excluded=excluded)
    (kept,) = get_pruner("cls_attention").select([image], 12)
    assert kept.tolist() == slow_top(image.cls_attention.tolist(), candidates(image), 12)


def test_cls_attention_breaks_ties_by_the_lowest_index():
    tied = torch.tensor([0.1, 0.3, 0.3, 0.2, 0.3, 0.3])
    image = PruneInput(tokens=torch.randn(6, 4), features=torch.randn(6, 4), cls_attention=tied)
    assert get_pruner("cls_attention").select([image], 3)[0].tolist() == [1, 2, 4]


def test_identical_tokens_are_picked_from_the_lowest_index_up():
    image = PruneInput(tokens=torch.ones(9, 4), features=torch.ones(9, 4), text=torch.ones(2, 4))
    for name in ("mmtok", "vision_coverage", "text_coverage", "divprune", "divprune_cen", "cdpruner", "cdpruner_cen"):
        assert get_pruner(name).select([image], 4)[0].tolist() == [0, 1, 2, 3], name


def test_random_is_fixed_by_its_seed_and_spread_over_all_tokens():
    image = make_input(seed=0, n=20, excluded=5)
    draws = []
    for seed in range(200):
        seeded = PruneInput(image.tokens, image.features, allowed=image.allowed, seed=seed)
        first, again = (get_pruner("random").select([seeded], 6)[0].tolist() for _ in range(2))
        assert first == again
        draws += first
    counts = np.bincount(draws, minlength=20)
    assert set(np.flatnonzero(counts)) == set(candidates(image))
    assert abs(counts[counts > 0] - 80).max() < 35  # 200 draws of 6 out of 15: mean 80, standard deviation 7


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (12, 48), (7, 31), (1, 40), (40, 1)])
@pytest.mark.parametrize("k", [1, 2, 4, 5, 16, 37, 39])
def test_uniform_spreads_tokens_evenly(rows, columns, k):
    image = make_input(seed=1, n=rows * columns, grid=(rows, columns))
    (kept,) = get_pruner("uniform").select([image], k)
    assert len(set(kept.tolist())) == k
    places = [(j // columns, j % columns) for j in kept.tolist()]
    for part in (slice(0, 1), slice(1, 2)):  # centred: as much on one half as on the other, rows and columns alike
        size = (rows, columns)[part][0]
        mean = np.mean([place[part][0] for place in places])
        assert abs(mean - (size - 1) / 2) <= max(1.0, 0.12 * size)
    if min(rows, columns) > 1:
        step = math.sqrt(rows * columns / k)
        for row in range(rows):
            for column in range(columns):
                assert min(math.hypot(row - r, column - c) for r, c in places) <= 1.5 * step + 1


def test_uniform_of_a_square_number_is_a_regular_lattice():
    image = make_input(seed=1, n=576, grid=(24, 24))
    (kept,) = get_pruner("uniform").select([image], 16)
    assert kept.tolist() == [24 * row + column for row in (3, 9, 15, 21) for column in (3, 9, 15, 21)]


def test_uniform_fills_the_rectangle_that_padding_leaves():
    allowed = torch.zeros(24, 24, dtype=torch.bool)
    allowed[6:18] = True
    image = make_input(seed=1, n=576)
    image = PruneInput(image.tokens, image.features, allowed=allowed.flatten(), grid=(24, 24))
    (kept,) = get_pruner("uniform").select([image], 8)
    assert kept.tolist() == [24 * row + column for row in (9, 15) for column in (3, 9, 15, 21)]


def test_uniform_without_a_grid_is_even_in_order():
    image = make_input(seed=1, n=30)
    assert get_pruner("uniform").select([image], 3)[0].tolist() == [5, 15, 25]
