"""What learns from examples, and what explains a head: refused inputs, and what every method of these keeps."""

from dataclasses import fields, replace

import pytest
import torch

from covervlm.server.clip.methods.contracts import Examples, Head
from tests.server.clip.method_samples import (
    CLASSES,
    DIMENSIONS,
    chosen,
    dtypes,
    every_classifier,
    every_explanation,
    every_learner,
    every_projection,
    examples,
    learned,
    of_same_image,
    quick,
)


def test_examples_that_teach_nothing_are_refused():
    good = examples()
    for features, text, labels, words in [
        (good.features[0], good.text, None, "images, dimensions"),
        (good.features[:0], good.text, None, "at least one image"),
        (good.features * float("nan"), good.text, None, "finite"),
        (good.features, good.text[:-1], None, "dimensions"),
        (good.features, good.text[:, :1], None, "two classes"),
        (good.features, good.text * float("inf"), None, "finite"),
        (good.features, good.text, good.labels[1:], "labels"),
    ]:
        with pytest.raises(ValueError, match=words):
            Examples(features, text, labels)


def test_labels_groups_and_views_that_do_not_fit_are_refused():
    good = examples()
    for change, words in [
        ({"labels": good.labels.float()}, "labels must be whole numbers"),
        ({"labels": good.labels - 1}, "labels must be whole numbers from 0"),
        ({"labels": good.labels + 1}, "a label is 4, but there are 4 classes"),
        ({"groups": good.groups[1:]}, "as many groups"),
        ({"groups": good.groups - 1}, "groups must be whole numbers from 0"),
        ({"second_views": good.second_views[1:]}, "second views"),
        ({"second_views": good.second_views[:, 1:]}, "second views"),
        ({"second_views": good.second_views * float("nan")}, "finite"),
    ]:
        with pytest.raises(ValueError, match=words):
            replace(good, **change)
    assert replace(good, text=None, labels=good.labels[:, None].squeeze(1)).classes == CLASSES


# Fit, for classifiers and projections.


@every_classifier
@dtypes
@pytest.mark.parametrize("n", [1, 2, 40])
def test_a_head_scores_each_class_in_the_features_dtype(kind, name, dtype, n):
    given = examples(n, dtype)
    head = quick(kind, name).fit(given)
    logits = head.logits(given.features)
    assert logits.dtype == dtype
    assert logits.shape == (n, CLASSES)
    assert logits.isfinite().all()
    if isinstance(head, Head):
        assert head.proxies.shape == (DIMENSIONS, CLASSES)
        assert head.temperature > 0


@every_classifier
def test_without_text_the_labels_say_how_many_classes_there_are(kind, name):
    method, given = quick(kind, name), replace(examples(6, classes=3), text=None)
    if "text" not in method.needs:
        assert method.fit(given).logits(given.features).shape == (6, 3)


@every_projection
@dtypes
@pytest.mark.parametrize("n", [1, 2, 40])
def test_a_projection_gives_unit_rows_in_the_features_dtype(name, dtype, n):
    given = examples(n, dtype)
    rows = quick("project", name).fit(given).embed(given.features)
    assert rows.dtype == dtype
    assert rows.shape == (n, 5)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(n, dtype=dtype))


@every_learner
def test_two_classes_are_enough_and_one_image_many_times_is_no_harm(kind, name):
    for given in (examples(6, classes=2), of_same_image(examples(6), 30)):
        for tensor in learned(quick(kind, name).fit(given)).values():
            assert tensor.isfinite().all()


@every_learner
def test_duplicates_learn_and_a_group_or_class_that_appears_once_is_no_harm(kind, name):
    rows = torch.tensor([*range(8), *range(8), *range(12)])
    lonely = chosen(examples(), rows)
    lonely.groups[0], lonely.labels[1:] = 3, lonely.labels[1:].clamp_min(1)
    for tensor in learned(quick(kind, name).fit(lonely)).values():
        assert tensor.isfinite().all()


@every_learner
def test_the_same_seed_gives_the_same_and_the_inputs_stay_as_they_are(kind, name):
    given = examples()
    before = [getattr(given, field.name).clone() for field in fields(given)]
    first, second = (learned(quick(kind, name).fit(given, seed=seed)) for seed in (3, 3))
    for key in first:
        assert torch.equal(first[key], second[key])
    for field, copy in zip(fields(given), before, strict=True):
        assert torch.equal(getattr(given, field.name), copy)


@every_learner
def test_classes_in_another_order_are_learned_in_that_order(kind, name):
    given, order = examples(dtype=torch.float64), torch.tensor([2, 0, 3, 1])
    permuted = replace(given, text=given.text[:, order], labels=order.argsort()[given.labels])
    first, second = (quick(kind, name).fit(these) for these in (given, permuted))
    if kind != "project":
        first, second = first.logits(given.features)[:, order], second.logits(given.features)
    else:
        first, second = first.embed(given.features), second.embed(given.features)
    torch.testing.assert_close(second, first, atol=1e-9, rtol=0)


@every_learner
def test_without_what_it_needs_nothing_is_learned(kind, name):
    method = quick(kind, name)
    for need in method.needs:
        with pytest.raises(ValueError, match=f"{need} is needed"):
            method.fit(replace(examples(), **{need: None}))


@every_learner
def test_what_it_does_not_need_changes_nothing(kind, name):
    """But what says more where it is there: a start, or groups."""
    method = quick(kind, name)
    lacking = replace(examples(), **{need: None for need in ("second_views",) if need not in method.needs})
    first, second = (learned(method.fit(given)) for given in (examples(), lacking))
    for key in first:
        assert torch.equal(first[key], second[key])


# Explain.


@every_explanation
@dtypes
def test_evidence_is_finite_or_nowhere_near_and_in_the_features_dtype(name, dtype):
    given = examples(dtype=dtype)
    for head in (quick("train", "linear").fit(given), quick("train", "mlp").fit(given)):
        evidence = quick("explain", name).explain(head, given.features[0])
        for key, value in evidence.items():
            assert not value.isnan().any(), key
            assert value.dtype in (dtype, torch.bool), key
        torch.testing.assert_close(evidence["logits"], head.logits(given.features[:1])[0], atol=1e-5, rtol=1e-5)
