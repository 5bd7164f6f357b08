"""What every stream owes."""

from dataclasses import fields

import pytest
import torch

from tests.server.clip.method_samples import CLASSES, dtypes, every_stream, examples, quick


@every_stream
@dtypes
def test_each_image_gets_a_distribution_over_the_classes_in_its_turn(name, dtype):
    given = examples(dtype=dtype)
    stream = quick("stream", name).open(given.text, 20)
    for index, feature in enumerate(given.features):
        answer = stream.observe(feature)
        assert answer.index == index
        assert answer.combined.dtype == dtype
        assert answer.combined.shape == (CLASSES,)
        torch.testing.assert_close(answer.combined.sum(), torch.tensor(1, dtype=dtype))
    assert stream.observed == len(given.features)


@every_stream
def test_a_stream_restored_from_its_state_goes_on_as_if_never_interrupted(name):
    given, method = examples(), quick("stream", name)
    whole, other = (method.open(given.text, 20) for _ in range(2))
    for feature in given.features[:10]:
        whole.observe(feature)
    state = whole.snapshot()
    assert isinstance(state, method.state)
    assert state.observed == 10
    expected = [whole.observe(feature).combined for feature in given.features[10:]]
    other.restore(state)
    for feature, answer in zip(given.features[10:], expected, strict=True):
        assert torch.equal(other.observe(feature).combined, answer)


@every_stream
def test_what_does_not_fit_a_stream_changes_nothing(name):
    given = examples()
    stream = quick("stream", name).open(given.text, 20)
    stream.observe(given.features[0])
    before = stream.snapshot()
    for feature in (given.features[0, 1:], given.features[0] * float("nan"), given.features[:2]):
        with pytest.raises(ValueError, match=r"dimensions|finite"):
            stream.observe(feature)
    other = quick("stream", name).open(given.text[:, 1:], 20).snapshot()
    for refuse in (stream.check, stream.restore):
        with pytest.raises(ValueError, match="other classes"):
            refuse(other)
    for field in fields(before):
        now, then = (torch.as_tensor(getattr(state, field.name)) for state in (stream.snapshot(), before))
        assert torch.equal(now, then)
    with pytest.raises(ValueError, match="horizon"):
        quick("stream", name).open(given.text, 0)
    with pytest.raises(ValueError, match="two classes"):
        quick("stream", name).open(given.text[:, :1], 20)


@every_stream
@pytest.mark.parametrize("n", [1, 64, 150])
def test_images_that_come_together_get_answers_in_their_order_and_count(name, n):
    method = quick("stream", name)
    given = examples(n)
    stream = method.open(given.text, 200)
    stream.observe(given.features[0])
    answers = stream.observe_all(given.features)
    assert [answer.index for answer in answers] == list(range(1, n + 1))
    assert stream.observed == n + 1
    for answer in answers:
        torch.testing.assert_close(answer.combined.sum(), torch.tensor(1.0))
        assert answer.label == int(answer.combined.argmax())
    with pytest.raises(ValueError, match=r"dimensions|finite"):
        stream.observe_all(given.features * float("nan"))
    assert stream.observed == n + 1
