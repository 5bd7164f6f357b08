"""The choice is the best of the candidates on examples that none of them has learned from."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from covervlm.server.clip.choice import BASELINES, ZERO_SHOT, Candidate, calibrated, candidates, choose
from covervlm.server.clip.holdout import Share
from covervlm.server.clip.methods.contracts import Diverged, Examples, Head


def examples(turned: bool, n: int = 80) -> Examples:
    """Classes near their text, or near it after a turn that no text knows of."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(8, 4, generator=generator), dim=0)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q if turned else torch.eye(8)
    labels = torch.arange(n) % 4
    features = normalize(text.T[labels] @ turn + 0.25 * torch.randn(n, 8, generator=generator), dim=1)
    return Examples(features, text, labels, labels % 2)


def test_learning_is_chosen_where_it_helps():
    choice = choose(examples(turned=True))
    assert choice.best.candidate.method != ZERO_SHOT
    by_method = {one.candidate.method: one.score for one in choice.judged}
    assert by_method[ZERO_SHOT].accuracy.value < 0.6
    assert all(found.accuracy.count == 80 for found in by_method.values())
    assert choice.best.score.class_mean == max(one.score.class_mean for one in choice.judged) > 0.9
    assert set(choice.best.score.groups) == {0, 1}


def test_where_nothing_does_better_the_text_alone_is_kept():
    given = examples(turned=False)
    sharp = replace(given, features=given.text.T[given.labels])
    choice = choose(sharp, temperature=0.07)
    assert choice.best.candidate.method == ZERO_SHOT
    assert isinstance(choice.head, Head)
    assert torch.equal(choice.head.proxies, sharp.text)
    assert choice.head.temperature == 0.07


def test_no_held_out_example_is_learned_from(monkeypatch):
    """A method that remembers its examples answers them right, and all others wrong."""
    given, seen = examples(turned=True, n=20), []

    class Parrot:
        needs = ()
        balanced = False

        def fit(self, known, *, seed, progress):
            seen.append(known)
            progress(1.0)

            class Answers:
                def logits(self, asked):
                    inside = (asked[:, None] == known.features[None]).all(dim=2).any(dim=1)
                    return torch.stack([inside, ~inside], dim=1).float()

            return Answers()

    monkeypatch.setattr(Candidate, "learner", lambda self: Parrot())
    zeros = replace(given, labels=torch.zeros_like(given.labels))
    found = choose(zeros, (Candidate("parrot", {}),)).best.score
    assert found.accuracy == Share(0, 20)
    assert [len(known.features) for known in seen] == [16] * 5 + [20]


def test_methods_that_need_text_are_left_out_without_it_and_progress_never_falls():
    shares = []
    choice = choose(replace(examples(turned=True), text=None), progress=lambda share, /, **_: shares.append(share))
    assert {one.candidate.method for one in choice.judged} == {"linear", "sea"}
    assert shares == sorted(shares)
    assert shares[-1] == 1
    with pytest.raises(ValueError, match="no method can learn"):
        choose(replace(examples(turned=True), text=None), (Candidate(ZERO_SHOT, {}),))
    with pytest.raises(ValueError, match="labels are needed"):
        choose(replace(examples(turned=True), labels=None))


def test_the_same_seed_chooses_the_same_head():
    first, second = (choose(examples(turned=True), seed=4) for _ in range(2))
    assert first.best.candidate == second.best.candidate
    assert torch.equal(first.head.proxies, second.head.proxies)


def test_values_worth_trying_are_tried_unless_they_are_given():
    assert [one.parameters["eta"] for one in candidates("sea", {})] == [0.0, 0.2, 0.5, 0.8]
    assert candidates("sea", {"eta": 0.3, "epochs": 5}) == (Candidate("sea", {"eta": 0.3, "epochs": 5}),)
    assert candidates("linear", {}) == (BASELINES[1],)


def test_baselines_are_judged_and_not_chosen():
    given = examples(turned=False)
    sharp = replace(given, features=given.text.T[given.labels])
    choice = choose(sharp, candidates("mlp", {"epochs": 1}), beside=BASELINES)
    assert choice.best.candidate.method == "mlp"
    assert [one.candidate.method for one in choice.judged] == ["mlp", ZERO_SHOT, "linear"]


def test_what_diverges_is_left_out_unless_everything_does():
    given = examples(turned=True)
    bad = Candidate("sea", {"eta": 0.0, "learning_rate": 1000.0, "weight_decay": 1.0, "epochs": 200})
    with pytest.raises(Diverged):
        choose(given, (bad,))
    assert choose(given, (bad, *BASELINES)).best.candidate.method == "linear"


def test_confidence_is_the_temperature_under_which_labels_are_likeliest():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=generator).squeeze(1)
    for factor in (0.1, 1.0, 10.0):
        assert calibrated(logits * factor, labels) == pytest.approx(factor, rel=0.1)


def test_a_few_right_answers_make_nobody_sure():
    for m, most in ((8, 0.97), (400, 0.9995)):
        labels = torch.arange(m) % 2
        logits = 20 * torch.nn.functional.one_hot(labels, 2).double()
        confidence = float(torch.softmax(logits / calibrated(logits, labels), dim=1).max(dim=1).values.mean())
        assert 1 - 1 / m < confidence < most


def test_a_prior_moves_answers_to_what_is_frequent_and_the_mean_is_by_it():
    """Two classes on one point: the more frequent one is right as often as it comes."""
    text = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    features = torch.tensor([[1.0, 0.0]] * 20 + [[0.0, 1.0]] * 40)
    labels = torch.tensor([0] * 20 + [1] * 20 + [2] * 20)
    given, prior = Examples(features, normalize(text, dim=0), labels), torch.tensor([0.2, 0.1, 0.7])
    choice = choose(given, candidates("linear", {}), prior=prior)
    assert [share.value for share in choice.best.score.classes] == [1, 0, 1]
    plain = choose(given, candidates("linear", {})).best
    torch.testing.assert_close(choice.best.offsets, (3 * prior).log())
    sure = choice.best.confidences[labels[choice.rows] > 0].mean()
    torch.testing.assert_close(sure, torch.tensor(7 / 8), atol=0.05, rtol=0)
    assert plain.offsets is None
