"""What every registered method owes its callers, whatever it keeps."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from covervlm.pruners import PruneInput, get_pruner, pruner_names
from covervlm.pruners.none import KeepAll
from covervlm.pruners.registry import pruner_class

PRUNING = [name for name in pruner_names() if not issubclass(pruner_class(name), KeepAll)]
every_method = pytest.mark.parametrize("name", pruner_names())
every_pruning_method = pytest.mark.parametrize("name", PRUNING)


def make_input(seed=0, rows=6, columns=8, m=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    n = rows * columns
    return PruneInput(
        tokens=torch.randn(n, 16, generator=generator).to(dtype),
        features=torch.randn(n, 12, generator=generator).to(dtype),
        text=torch.randn(m, 16, generator=generator).to(dtype),
        grid=(rows, columns),
        cls_attention=torch.rand(n, generator=generator),
        seed=seed,
    )


def mask(n, *places):
    allowed = torch.zeros(n, dtype=torch.bool)
    allowed[list(places)] = True
    return allowed


@every_pruning_method
@pytest.mark.parametrize("keep", [1, 2, 13, 47])
def test_exactly_keep_tokens_come_back_ascending_and_distinct(name, keep):
    (selection,) = get_pruner(name).choose([make_input()], keep)
    indices = selection.indices
    assert indices.dtype == torch.int64
    assert indices.shape == (keep,)
    assert (indices.diff() > 0).all()
    assert indices[0] >= 0
    assert indices[-1] < 48
    assert 0 < selection.coverage <= 1


@every_method
@pytest.mark.parametrize("keep", [48, 49, 10**9])
def test_a_budget_with_room_for_all_keeps_all_even_padding(name, keep):
    image = replace(make_input(), allowed=mask(48, 3, 4, 5))
    (selection,) = get_pruner(name).choose([image], keep)
    assert selection.indices.tolist() == list(range(48))
    assert selection.coverage == 1.0


@every_pruning_method
def test_disallowed_tokens_are_never_kept(name):
    image = replace(make_input(), allowed=mask(48, *range(0, 48, 3)))
    (kept,) = get_pruner(name).select([image], 10)
    assert len(kept) == 10
    assert (kept % 3 == 0).all()


@every_pruning_method
@pytest.mark.parametrize("keep", [3, 4, 20])
def test_fewer_allowed_than_keep_are_all_kept_and_nothing_else(name, keep):
    image = replace(make_input(), allowed=mask(48, 7, 21, 40))
    (selection,) = get_pruner(name).choose([image], keep)
    assert selection.indices.tolist() == [7, 21, 40]
    assert selection.coverage == 1.0


@every_pruning_method
def test_a_mask_that_allows_nothing_is_ignored(name):
    image = make_input()
    (kept,) = get_pruner(name).select([replace(image, allowed=mask(48))], 9)
    assert kept.tolist() == get_pruner(name).select([image], 9)[0].tolist()


@every_method
def test_no_text_and_empty_text_are_the_same(name):
    image = make_input()
    without = get_pruner(name).choose([replace(image, text=None)], 9)[0]
    empty = get_pruner(name).choose([replace(image, text=image.text[:0])], 9)[0]
    assert without.indices.tolist() == empty.indices.tolist()
    assert without.coverage == empty.coverage


@every_pruning_method
def test_the_question_matters_exactly_where_the_method_says_so(name):
    pruner = get_pruner(name)
    kept = {tuple(pruner.select([replace(make_input(), text=torch.randn(3, 16))], 5)[0].tolist()) for _ in range(8)}
    assert (len(kept) > 1) == pruner.uses_text


@every_method
def test_one_token_is_kept_whatever_the_budget(name):
    (kept,) = get_pruner(name).select([make_input(rows=1, columns=1)], 1)
    assert kept.tolist() == [0]


@every_method
def test_no_inputs_give_no_selections(name):
    assert get_pruner(name).choose([], 5) == []


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_is_accepted(name, dtype):
    (selection,) = get_pruner(name).choose([make_input(dtype=dtype)], 11)
    assert len(selection.indices) == (11 if name in PRUNING else 48)
    assert 0 < selection.coverage <= 1


@every_method
@pytest.mark.parametrize("field", ["tokens", "features", "text", "cls_attention"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_by_name(name, field, value):
    good, image = make_input(1), make_input()
    spoiled = getattr(image, field).clone()
    spoiled.view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"{field} of input 1"):
        get_pruner(name).choose([good, replace(image, **{field: spoiled})], 5)


@every_method
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(47, 12)}, "features of input 0 has shape"),
        ({"text": torch.zeros(2, 15)}, "text of input 0 has shape"),
        ({"allowed": torch.ones(47, dtype=torch.bool)}, "allowed of input 0 has shape"),
        ({"allowed": torch.ones(48)}, "allowed of input 0 has dtype"),
        ({"cls_attention": torch.zeros(48, 1)}, "cls_attention of input 0 has shape"),
        ({"grid": (5, 8)}, "grid"),
        ({"tokens": torch.zeros(48)}, "tokens of input 0 has shape"),
        ({"tokens": torch.zeros(0, 16), "features": torch.zeros(0, 12), "cls_attention": None}, "has no tokens"),
    ],
)
def test_malformed_inputs_are_refused_with_what_is_wrong(name, change, message):
    with pytest.raises(ValueError, match=message):
        get_pruner(name).choose([replace(make_input(), **change)], 5)


@every_pruning_method
@pytest.mark.parametrize("keep", [0, -1, [3, 0], [3], [3, 4, 5], 2.0, "4", True, None])
def test_impossible_budgets_are_refused(name, keep):
    with pytest.raises(ValueError, match="keep"):
        get_pruner(name).choose([make_input(), make_input(1)], keep)


@pytest.mark.parametrize("name", ["mmtok", "random", "uniform", "divprune"])
def test_methods_that_need_no_cls_attention_work_without_it(name):
    assert len(get_pruner(name).select([replace(make_input(), cls_attention=None)], 5)[0]) == 5


def test_missing_cls_attention_is_named():
    with pytest.raises(ValueError, match="needs cls_attention"):
        get_pruner("cls_attention").choose([replace(make_input(), cls_attention=None)], 5)


@every_method
def test_a_ragged_batch_equals_its_inputs_one_by_one(name):
    images = [make_input(i, rows=3 + i % 4, columns=4 + i % 3, m=i % 4) for i in range(12)]
    images[4] = replace(images[4], allowed=mask(len(images[4].tokens), 1, 2, 5, 6, 8))
    images[7] = replace(images[7], allowed=mask(len(images[7].tokens), *range(9)))
    images += [make_input(20 + i, m=3) for i in range(4)]
    keep = [1 + (5 * i) % 13 for i in range(len(images))]
    pruner = get_pruner(name)
    together = pruner.choose(images, keep)
    for image, k, batched in zip(images, keep, together, strict=True):
        (alone,) = pruner.choose([image], k)
        assert batched.indices.tolist() == alone.indices.tolist()
        assert batched.coverage == pytest.approx(alone.coverage, abs=1e-6)


@every_method
def test_sixteen_threads_get_their_serial_answers(name):
    jobs = [(make_input(i, m=1 + i % 5), 1 + 2 * i) for i in range(16)] * 4
    pruner = get_pruner(name)
    serial = [pruner.choose([image], keep)[0] for image, keep in jobs]
    # torch's thread count belongs to each thread and decides the order of its sums.
    same_count = {"initializer": torch.set_num_threads, "initargs": (torch.get_num_threads(),)}
    with ThreadPoolExecutor(16, **same_count) as pool:
        threaded = list(pool.map(lambda job: pruner.choose([job[0]], job[1])[0], jobs))
    for one, other in zip(serial, threaded, strict=True):
        assert one.indices.tolist() == other.indices.tolist()
        assert one.coverage == other.coverage


@every_method
def test_choosing_leaves_the_inputs_as_they_were(name):
    image, pristine = make_input(), make_input()
    get_pruner(name).choose([image], 9)
    for field in ("tokens", "features", "text", "cls_attention"):
        assert torch.equal(getattr(image, field), getattr(pristine, field))


@pytest.mark.parametrize("name", PRUNING)
def test_coverage_is_the_share_of_the_objective_over_what_may_be_kept(name):
    """By hand in float64, the same yardstick for every method."""
    image = replace(make_input(), allowed=mask(48, *range(30)))
    (selection,) = get_pruner(name).choose([image], 6)
    unit = torch.nn.functional.normalize
    x, v, z = (unit(part.double(), dim=1) for part in (image.tokens, image.features, image.text))
    affinity = torch.cat([(z @ x.T / 0.02).softmax(dim=1) / 4, 0.5 * (v @ v.T / 0.2).softmax(dim=1) / 48])
    reached = sum(max(row[j] for j in selection.indices.tolist()) for row in affinity)
    everything = sum(max(row[:30]) for row in affinity)
    assert selection.coverage == pytest.approx(float(reached / everything), rel=1e-5)


def test_large_but_finite_values_are_accepted():
    """Although their sum overflows float32."""
    image = replace(make_input(), features=torch.full((48, 12), 3e38))
    assert len(get_pruner("mmtok").select([image], 5)[0]) == 5
