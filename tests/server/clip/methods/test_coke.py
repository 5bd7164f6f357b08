"""CoKe against the released program's epochs, the linear programme it approximates, and spherical k-means."""

import pytest
import torch
from torch.nn.functional import normalize

from covervlm.server.clip.methods.coke import CoKe, CoKeGroups, OnlineKMeans, whole_step
from covervlm.server.clip.methods.contracts import Pictures

cases = pytest.mark.parametrize("case", range(3))


def started(g, **changes):
    given = {"n": g.n, "ratio": g.ratio, "dual_step": g.dual_lr, "online_epochs": g.stage} | changes
    return OnlineKMeans(g.centers0, **given)


def epoch(groups, x, order, batch):
    """Every row's label."""
    groups.begin_epoch()
    labels = torch.empty(len(x), dtype=torch.int64)
    for rows in order.split(batch):
        labels[rows] = groups.assign(x[rows])
    return labels


@cases
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_every_epoch_is_that_of_the_reference(golden, case, dtype, atol):
    g = golden("coke", case, dtype)
    groups = started(g)
    for number, order in enumerate(g.order):
        assert torch.equal(epoch(groups, g.x, order, g.batch), g.labels[number])
        assert groups.centers.dtype == dtype
        for ours, theirs in ((groups.duals, g.duals), (groups.centers, g.centers), (groups.counts, g.counts)):
            torch.testing.assert_close(ours, theirs[number], atol=atol, rtol=0)
    assert torch.bincount(g.labels[-1]).tolist() == g.last_epoch_sizes
    assert groups.lower_bound == g.lower_bound


@cases
def test_renumbered_groups_are_renumbered_throughout(golden, case):
    g = golden("coke", case)
    turn = torch.randperm(g.clusters, generator=torch.Generator().manual_seed(case))
    plain, turned = started(g), started(g)
    turned._moving = turned._still = turned._still[turn].clone()
    for order in g.order:
        labels = epoch(plain, g.x, order, g.batch)
        assert torch.equal(turn[epoch(turned, g.x, order, g.batch)], labels)
    torch.testing.assert_close(turned.centers, plain.centers[:, turn])


def test_without_a_dual_step_it_is_mini_batch_spherical_k_means(golden):
    g = golden("coke", 0)
    groups = started(g, dual_step=0.0)
    centers, counts = g.centers0.T.clone(), [0] * g.clusters
    for number, order in enumerate(g.order):
        counts = [0] * g.clusters
        expected = torch.empty(g.n, dtype=torch.int64)
        for rows in order.split(g.batch):
            expected[rows] = (g.x[rows] @ centers.T).argmax(1)
            for k in expected[rows].unique().tolist():
                members = g.x[rows][expected[rows] == k]
                centers[k] = normalize((counts[k] * centers[k] + members.sum(0)) / (counts[k] + len(members)), dim=0)
                counts[k] += len(members)
        assert torch.equal(epoch(groups, g.x, order, g.batch), expected), number


def fixed_centers(g, passes: int, **changes):
    """Labels of each pass over the examples where centres do not move."""
    groups = OnlineKMeans(g.centers[-1], **{"n": g.n, "ratio": g.ratio, "dual_step": g.dual_lr} | changes)
    found = []
    for number in range(passes):
        labels = torch.empty(g.n, dtype=torch.int64)
        for rows in torch.randperm(g.n, generator=torch.Generator().manual_seed(number)).split(g.batch):
            groups._moving = groups._still = g.centers[-1].T.clone()
            labels[rows] = groups.assign(g.x[rows])
        found.append(labels)
    return found


def shortfall(g, labels):
    return float((g.ratio * g.n / g.clusters - torch.bincount(labels, minlength=g.clusters)).clamp_min(0).sum()) / g.n


@cases
def test_with_fixed_centres_sizes_near_their_bounds_and_similarity_the_linear_programmes(golden, case):
    g = golden("coke", case)
    passes = fixed_centers(g, 20, dual_step=0.5)

    def similarity(labels):
        return float((g.x * g.centers[-1].T[labels]).sum())

    optimum = similarity(g.optimal_labels)
    assert optimum == pytest.approx(g.similarity_offline_optimum)
    plain = (g.x @ g.centers[-1]).argmax(1)
    assert shortfall(g, passes[-1]) <= max(0.01, shortfall(g, plain) / 2)
    assert abs(similarity(passes[-1]) - optimum) < 0.02 * optimum


def test_equal_shares_even_out_the_sizes(golden):
    g = golden("coke", 0)

    def spread(labels):
        sizes = torch.bincount(labels, minlength=g.clusters).double()
        return float(sizes.std() / sizes.mean())

    even = fixed_centers(g, 20, ratio=1.0, dual_step=0.5)[-1]
    assert spread(even) < 0.3 * spread((g.x @ g.centers[-1]).argmax(1))


def scenes(n: int = 600, classes: int = 6, d: int = 12):
    """The first class is a twentieth of what the others are."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(1, classes, (n,), generator=generator)
    y[torch.rand(n, generator=generator) < 0.02] = 0
    centers = normalize(torch.randn(d, classes, generator=generator), dim=0)
    return normalize(centers.T[y] + 0.25 * torch.randn(n, d, generator=generator), dim=1), y, centers


def test_a_stream_holds_sizes_whether_images_come_one_by_one_or_together():
    x, _, centers = scenes()
    for size in (1, 7, 64):
        free, held = (CoKe(dual_step=step, ratio=0.8).open(centers, len(x)) for step in (0.0, 0.2))
        smallest = []
        for stream in (free, held):
            labels = torch.cat([stream.observe_batch(rows) for rows in x.split(size)])
            smallest.append(int(torch.bincount(labels, minlength=6).min()))
        assert smallest[1] > 2 * smallest[0], size


def test_a_stream_answers_the_group_that_its_distribution_has_first():
    x, _, centers = scenes()
    stream = CoKe().open(centers, len(x))
    for index, row in enumerate(x[:100]):
        answer = stream.observe(row)
        assert (answer.index, answer.label) == (index, int(answer.combined.argmax()))


def test_past_the_horizon_a_stream_forgets_and_follows_its_groups():
    x, _, centers = scenes()
    turned = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1))).Q
    stream = CoKe(dual_step=0.0).open(centers, 50)
    for rows in x.repeat(3, 1).split(20):
        stream.observe_batch(rows)
    assert float(stream.snapshot().counts.max()) <= 50
    still = torch.lerp(torch.eye(12), turned, 0.3)
    moved = normalize(x @ still, dim=1)
    for rows in moved.split(20):
        stream.observe_batch(rows)
    kept = (moved @ stream.snapshot().centers).max(dim=1).values.mean()
    assert kept > (moved @ centers).max(dim=1).values.mean() + 0.03


def test_what_is_no_batch_is_refused_and_changes_nothing():
    x, _, centers = scenes()
    stream = CoKe().open(centers, 10)
    stream.observe_batch(x[:10])
    before = stream.snapshot()
    for wrong in (x[0], x[:3, 1:], x[:3] * float("nan")):
        with pytest.raises(ValueError, match=r"dimensions|finite"):
            stream.observe_batch(wrong)
    assert torch.equal(stream.snapshot().duals, before.duals)
    damaged = type(before)(before.centers, before.duals, before.counts - 100, before.observed)
    with pytest.raises(ValueError, match="damaged"):
        stream.restore(damaged)


def test_a_clustering_holds_the_smallest_group_up():
    x, _, centers = scenes()

    class Words:
        def encode(self, word):
            return word

    pictures = Pictures(x, torch.eye(12), Words(), centers.T[0], centers.T)
    sizes = [torch.bincount(CoKeGroups(dual_step=step, ratio=0.8).group(pictures, 6).labels) for step in (0.0, 0.2)]
    assert sizes[1].min() > 0.7 * 0.8 * 100 > sizes[0].min()


def test_the_dual_step_is_the_papers_for_thousands_of_groups_and_small_for_few():
    assert whole_step(0.05, 3000) == 20
    assert whole_step(0.05, 10) == pytest.approx(0.5)


def test_images_of_one_call_are_batches_of_64():
    x = normalize(torch.randn(150, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    together, apart = (CoKe().open(x[:4].T.contiguous(), 150) for _ in range(2))
    labels = [answer.label for answer in together.observe_all(x)]
    assert labels == torch.cat([apart.observe_batch(rows) for rows in x.split(64)]).tolist()
    for name in ("centers", "duals", "counts"):
        assert torch.equal(getattr(together.snapshot(), name), getattr(apart.snapshot(), name))
