"""InMaP against a direct transcription of its specification in float64, and against the released program's outputs."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.methods.inmap import fit_vision_proxies, harden_labels, sinkhorn_labels

VARIANTS = {"gamma0.0": {"gamma": 0.0}, "gamma0.5": {"gamma": 0.5}, "nosinkhorn": {"sinkhorn": False}}
CASES = [(case, variant) for case in range(3) for variant in VARIANTS]


def inputs(golden, case: int) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(golden[f"{case}.features"]), torch.from_numpy(golden[f"{case}.text_proxy"])


def synthetic(n: int = 400, classes: int = 7, d: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text = normalize(torch.randn(d, classes, generator=generator), dim=0)
    labels = torch.randint(classes, (n,), generator=generator)
    return normalize(text.T[labels] + 0.3 * torch.randn(n, d, generator=generator), dim=1), text


@pytest.fixture(scope="module")
def fitted(golden) -> dict[tuple[int, str], tuple[Tensor, int]]:
    """Proxies of every case with default settings, and the number of iterations that they took."""
    results = {}
    for case, variant in CASES:
        seen: list[int] = []
        proxies = fit_vision_proxies(
            *inputs(golden, case), **VARIANTS[variant], progress=lambda i, _, seen=seen: seen.append(i)
        )
        results[case, variant] = proxies, len(seen)
    return results


@pytest.fixture(scope="module")
def truth(golden) -> dict[tuple[int, str], Tensor]:
    """Proxies of every case by the specification in float64, where rounding decides nothing that could be seen."""
    return {
        (case, variant): transcribed(*(tensor.double() for tensor in inputs(golden, case)), **VARIANTS[variant])
        for case, variant in CASES
    }


def transcribed(features: Tensor, text: Tensor, *, sinkhorn: bool = True, gamma: float = 0.0) -> Tensor:
    """The specification line by line."""
    n = len(features)
    labels = torch.softmax(features @ text / 0.01, dim=1)
    if sinkhorn:
        labels = labels / n
        share = labels.sum(0) ** gamma
        share = share / share.sum()
        for _ in range(20):
            labels = labels / labels.sum(0) * share
            labels = labels / labels.sum(1, keepdim=True) / n
        labels = labels * n
    for row in labels:
        if row.max() > 0.6:
            best = int(row.argmax())
            row.zero_()
            row[best] = 1
    proxies, rate, last, target = text, 10.0, float("inf"), features.T @ labels
    for _ in range(2000):
        gradient = features.T @ torch.softmax(features @ proxies / 0.04, dim=1) - target
        norm = float(gradient.norm())
        if norm > last:
            rate /= 2
        last = norm
        proxies = normalize(proxies - rate / (n * 0.04) * gradient, dim=0)
    return proxies


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("case", range(3))
def test_sinkhorn_labels_are_those_of_the_reference(golden, case, gamma):
    features, text = inputs(golden, case)
    reference = torch.from_numpy(golden[f"{case}.sinkhorn_gamma{gamma}"])
    ours = sinkhorn_labels(features @ text, tau_text=0.01, gamma=gamma, iterations=20)
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=0)
    assert torch.equal(ours.argmax(1), reference.argmax(1))


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_a_fit_in_float64_is_the_specification(golden, truth, case, variant):
    features, text = (tensor.double() for tensor in inputs(golden, case))
    fitted = fit_vision_proxies(features, text, **VARIANTS[variant], tolerance=0)
    assert fitted.dtype == torch.float64
    torch.testing.assert_close(fitted, truth[case, variant], atol=1e-9, rtol=0)
    early = fit_vision_proxies(features, text, **VARIANTS[variant])
    torch.testing.assert_close(early, truth[case, variant], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_in_float32_rounding_costs_what_it_costs_the_reference(golden, truth, fitted, case, variant):
    """A step is halved when a norm that is constant up to rounding grows, so float32 results differ by machine."""
    reference = torch.from_numpy(golden[f"{case}.inmap_{variant}"]).double()
    ours = fitted[case, variant][0].double()
    errors = [float((proxies - truth[case, variant]).abs().max()) for proxies in (ours, reference)]
    assert errors[0] < max(5 * errors[1], 1e-4)


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_labels_are_those_of_the_reference(golden, golden_accuracy, truth, fitted, case, variant):
    """All of them in float64; in float32, rounding may decide a few images that lie between two classes."""
    features, _ = inputs(golden, case)
    reference = (features @ torch.from_numpy(golden[f"{case}.inmap_{variant}"])).argmax(1)
    labels = (features.double() @ truth[case, variant]).argmax(1)
    assert torch.equal(labels, reference)
    accuracy = (labels == torch.from_numpy(golden[f"{case}.labels"])).float().mean()
    assert float(accuracy) == pytest.approx(golden_accuracy[case][f"acc_inmap_{variant}"], abs=1e-6)
    assert ((features @ fitted[case, variant][0]).argmax(1) != reference).float().mean() < 0.01


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_ending_early_changes_no_label_and_no_proxy(golden, fitted, case, variant):
    features, text = inputs(golden, case)
    early, iterations = fitted[case, variant]
    full = fit_vision_proxies(features, text, **VARIANTS[variant], tolerance=0)
    assert torch.equal((features @ early).argmax(1), (features @ full).argmax(1))
    torch.testing.assert_close(early, full, atol=1e-4, rtol=0)
    if (case, variant) in [(0, "gamma0.0"), (2, "gamma0.0"), (2, "gamma0.5")]:
        assert iterations < 1500


@pytest.mark.parametrize("variant", VARIANTS)
def test_minibatches_change_nothing_but_rounding(golden, fitted, variant):
    features, text = inputs(golden, 1)
    whole, _ = fitted[1, variant]
    parts = fit_vision_proxies(features, text, **VARIANTS[variant], batch_size=97)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)


def test_class_totals_follow_the_prior():
    features, text = synthetic()
    uniform = sinkhorn_labels(features @ text, tau_text=0.1, iterations=100)
    torch.testing.assert_close(uniform.sum(0), torch.full((7,), 400 / 7), atol=0.05, rtol=0)
    torch.testing.assert_close(uniform.sum(1), torch.ones(400))
    share = torch.softmax(features @ text / 0.1, dim=1).sum(0).sqrt()
    flattened = sinkhorn_labels(features @ text, tau_text=0.1, gamma=0.5, iterations=100)
    torch.testing.assert_close(flattened.sum(0), 400 * share / share.sum(), atol=0.05, rtol=0)


def test_a_class_that_no_image_resembles_does_not_poison_the_labels():
    text = torch.eye(3)
    features = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.8, 0.6, 0.0]])
    features = torch.cat([features, -features[:1]])
    logits = features @ text
    logits[:, 2] = -1.0
    labels = sinkhorn_labels(logits, tau_text=0.001)
    assert labels.isfinite().all()
    assert labels[:3].argmax(1).tolist() == [0, 1, 0]


def test_hardening_makes_confident_rows_one_hot_and_leaves_the_rest():
    labels = harden_labels(torch.tensor([[0.7, 0.3], [0.6, 0.4]]), 0.65)
    torch.testing.assert_close(labels, torch.tensor([[1.0, 0.0], [0.6, 0.4]]))


def test_inputs_are_left_alone():
    features, text = synthetic()
    before = features.clone(), text.clone()
    logits = features @ text
    kept = logits.clone()
    sinkhorn_labels(logits)
    fit_vision_proxies(features, text, iterations=5)
    assert torch.equal(features, before[0])
    assert torch.equal(text, before[1])
    assert torch.equal(logits, kept)


def test_progress_sees_every_iteration_and_can_end_the_fit():
    class Stop(Exception):
        pass

    seen: list[tuple[int, float]] = []

    def progress(iteration: int, norm: float) -> None:
        seen.append((iteration, norm))
        if iteration == 3:
            raise Stop

    with pytest.raises(Stop):
        fit_vision_proxies(*synthetic(), progress=progress)
    assert [i for i, _ in seen] == [1, 2, 3]
    assert all(norm > 0 for _, norm in seen)


@pytest.mark.parametrize(
    ("features", "text", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 2), "dimensions"),
        (torch.ones(0, 3), torch.ones(3, 2), "at least one image"),
        (torch.ones(2, 3), torch.ones(3, 1), "at least two classes"),
        (torch.full((2, 3), float("nan")), torch.ones(3, 2), "finite"),
        (torch.ones(3), torch.ones(3, 2), "images, dimensions"),
    ],
)
def test_inputs_that_make_no_fit_are_refused(features, text, message):
    with pytest.raises(ValueError, match=message):
        fit_vision_proxies(features, text)
