"""OnZeta against its specification in float64 and the released program's outputs, and what its state promises."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.methods.onzeta import OnlineState, OnlineZeroShot, column_lengths

OUTCOMES = ["text", "combined", "w", "rho"]


@pytest.fixture
def text():
    return normalize(torch.randn(16, 5, generator=torch.Generator().manual_seed(1)), dim=0)


@pytest.fixture
def images():
    return normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(2)), dim=1)


def transcribed(images: Tensor, text: Tensor) -> dict[str, Tensor]:
    """The specification line by line: what every image was answered, and the state in the end."""
    n, classes = len(images), text.shape[1]
    rho, proxies, answers = text.new_zeros(classes), text, []
    for i, x in enumerate(images):
        root = (i + 1) ** 0.5
        beta = 0.8 * ((i + 1) / n) ** 0.5
        t = torch.softmax(x @ text / 0.01, dim=0) * rho.exp()
        t = t / t.sum()
        rho = (rho - 20 / root * (t - 1 / classes)).clamp(min=0)
        v = torch.softmax(x @ proxies / 0.04, dim=0)
        answers.append((t, beta * v + (1 - beta) * t))
        proxies = normalize(proxies - 0.5 / root / 0.04 * torch.outer(x, v - t), dim=0)
    by_text, combined = (torch.stack(rows) for rows in zip(*answers, strict=True))
    return {"text": by_text, "combined": combined, "w": proxies, "rho": rho}


def streamed(images: Tensor, text: Tensor) -> dict[str, Tensor]:
    """The same from our code."""
    stream = OnlineZeroShot(text, len(images))
    answers = [stream.observe(image) for image in images]
    state = stream.snapshot()
    by_text, combined = torch.stack([a.text for a in answers]), torch.stack([a.combined for a in answers])
    return {"text": by_text, "combined": combined, "w": state.vision_proxies, "rho": state.rho}


def case_inputs(golden, case: int) -> tuple[Tensor, Tensor]:
    """Images in the order in which they arrive, and text proxies."""
    features, text, order = (torch.from_numpy(golden[f"{case}.{n}"]) for n in ("features", "text_proxy", "order"))
    return features[order], text


@pytest.mark.parametrize("case", range(3))
def test_a_stream_in_float64_is_the_specification(golden, case):
    images, text = (tensor.double() for tensor in case_inputs(golden, case))
    ours, truth = streamed(images, text), transcribed(images, text)
    for what in OUTCOMES:
        assert ours[what].dtype == torch.float64
        torch.testing.assert_close(ours[what], truth[what], atol=1e-7, rtol=0)


@pytest.mark.parametrize("case", range(3))
def test_in_float32_rounding_costs_what_it_costs_the_reference(golden, case):
    """The first updates step far and amplify rounding, so float32 results differ by machine."""
    images, text = case_inputs(golden, case)
    ours, truth = streamed(images, text), transcribed(images.double(), text.double())
    for what in OUTCOMES:
        reference = torch.from_numpy(golden[f"{case}.onzeta_{what}"])
        errors = [float((values.double() - truth[what]).abs().max()) for values in (ours[what], reference)]
        assert errors[0] < max(3 * errors[1], 1e-4), what


def test_a_stream_is_that_of_the_reference_where_rounding_does_not_decide(golden):
    ours = streamed(*case_inputs(golden, 1))
    for what in OUTCOMES:
        torch.testing.assert_close(ours[what], torch.from_numpy(golden[f"1.onzeta_{what}"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", range(3))
def test_balanced_text_predictions_are_those_of_the_reference_on_any_machine(golden, case):
    ours, reference = streamed(*case_inputs(golden, case))["text"], torch.from_numpy(golden[f"{case}.onzeta_text"])
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=0)
    assert torch.equal(ours.argmax(1), reference.argmax(1))


SHAPES = [(768, 1000), (16, 5), (1, 7), (513, 2)]


def matrices(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    matrix[:, 0] = 0
    return [matrix * scale for scale in (1.0, 0.04, 3e4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_column_lengths_are_rounded_as_when_rows_are_added_up_one_by_one(shape):
    for matrix in matrices(shape):
        squares = np.zeros(shape[1], np.float32)
        for row in matrix.numpy():
            squares = squares + row * row
        assert np.array_equal(column_lengths(matrix).numpy(), np.sqrt(squares))


@pytest.mark.parametrize("shape", SHAPES)
def test_column_lengths_keep_float64(shape):
    for matrix in matrices(shape):
        lengths = column_lengths(matrix.double())
        torch.testing.assert_close(lengths, torch.linalg.vector_norm(matrix.double(), dim=0), rtol=1e-13, atol=0)


def test_a_restored_stream_goes_on_as_if_never_interrupted(text, images):
    whole = OnlineZeroShot(text, 60)
    expected = [whole.observe(image).combined for image in images]
    first = OnlineZeroShot(text, 60)
    for image in images[:25]:
        first.observe(image)
    state = first.snapshot()
    first.observe(images[0])
    second = OnlineZeroShot(text, 60)
    second.restore(state)
    assert second.observed == 25
    for image, answer in zip(images[25:], expected[25:], strict=True):
        assert torch.equal(second.observe(image).combined, answer)


def test_past_the_horizon_trust_in_the_learned_proxies_stays_at_beta(text, images):
    stream = OnlineZeroShot(text, 4)
    for i, image in enumerate(images[:10]):
        answer = stream.observe(image)
        share = 0.8 * min(1.0, ((i + 1) / 4) ** 0.5)
        torch.testing.assert_close(answer.combined, share * answer.vision + (1 - share) * answer.text)
        torch.testing.assert_close(answer.combined.sum(), torch.tensor(1.0))
        assert answer.index == i


def test_the_text_proxies_given_are_neither_changed_nor_kept(text, images):
    given = text.clone()
    stream = OnlineZeroShot(given, 60)
    stream.observe(images[0])
    assert torch.equal(given, text)


@pytest.mark.parametrize("bad", [torch.ones(15), torch.full((16,), float("nan")), torch.full((16,), float("inf"))])
def test_a_refused_image_updates_nothing(text, images, bad):
    stream = OnlineZeroShot(text, 60)
    stream.observe(images[0])
    before = stream.snapshot()
    with pytest.raises(ValueError, match=r"dimensions|finite"):
        stream.observe(bad)
    after = stream.snapshot()
    assert (after.observed, before.observed) == (1, 1)
    assert torch.equal(after.rho, before.rho)
    assert torch.equal(after.vision_proxies, before.vision_proxies)


def test_what_makes_no_stream_is_refused(text):
    with pytest.raises(ValueError, match="horizon"):
        OnlineZeroShot(text, 0)
    with pytest.raises(ValueError, match="two classes"):
        OnlineZeroShot(text[:, :1], 10)
    stream = OnlineZeroShot(text, 10)
    with pytest.raises(ValueError, match="other classes"):
        stream.restore(OnlineState(torch.zeros(4), text[:, :4], 3))
    with pytest.raises(ValueError, match="damaged"):
        stream.restore(OnlineState(torch.full((5,), float("nan")), text, 3))
