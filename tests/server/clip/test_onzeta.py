"""OnZeta against the released program's outputs, and what its state promises."""

import platform

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from covervlm.server.clip.onzeta import OnlineState, OnlineZeroShot, column_lengths

x86_only = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs 256-bit x86 vectors")


@pytest.fixture
def text():
    return normalize(torch.randn(16, 5, generator=torch.Generator().manual_seed(1)), dim=0)


@pytest.fixture
def images():
    return normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(2)), dim=1)


@x86_only
@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("what", ["onzeta_text", "onzeta_combined", "onzeta_w", "onzeta_rho"])
def test_stream_is_that_of_the_reference_under_its_rounding(golden, reproduced, case, what):
    ours, reference = (torch.from_numpy(values[f"{case}.{what}"]) for values in (reproduced, golden))
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=0)


def test_stream_is_that_of_the_reference_where_rounding_does_not_decide(golden):
    features, text, order = (torch.from_numpy(golden[f"1.{name}"]) for name in ("features", "text_proxy", "order"))
    stream = OnlineZeroShot(text, len(features))
    answers = torch.stack([stream.observe(features[i]).combined for i in order])
    torch.testing.assert_close(answers, torch.from_numpy(golden["1.onzeta_combined"]), atol=1e-4, rtol=0)
    state = stream.snapshot()
    torch.testing.assert_close(state.vision_proxies, torch.from_numpy(golden["1.onzeta_w"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(state.rho, torch.from_numpy(golden["1.onzeta_rho"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", range(3))
def test_balanced_text_predictions_are_those_of_the_reference_on_any_machine(golden, case):
    features, text, order = (torch.from_numpy(golden[f"{case}.{n}"]) for n in ("features", "text_proxy", "order"))
    stream = OnlineZeroShot(text, len(features))
    answers = torch.stack([stream.observe(features[i]).text for i in order])
    torch.testing.assert_close(answers, torch.from_numpy(golden[f"{case}.onzeta_text"]), atol=1e-4, rtol=0)


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


@x86_only  # elsewhere torch may fuse the products and sums of its norm
@pytest.mark.parametrize("shape", SHAPES)
def test_column_lengths_are_those_of_torchs_norm_to_the_last_bit(shape):
    for matrix in matrices(shape):
        assert torch.equal(column_lengths(matrix), torch.linalg.vector_norm(matrix, dim=0))


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
