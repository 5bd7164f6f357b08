"""Wordings are told apart by how much the images say of the word, without labels."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from covervlm.server.clip.prompt_choice import clearest, information, wordings


def test_information_is_that_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(20, 6, generator=generator), dim=1)
    words = normalize(torch.randn(4, 6, generator=generator), dim=1)
    rows = torch.softmax(images @ words.T / 0.1, dim=1).double()
    joint, marginal = rows / 20, rows.mean(0)
    expected = sum(
        float(joint[i, j]) * math.log(float(joint[i, j]) / (float(marginal[j]) / 20))
        for i in range(20)
        for j in range(4)
    )
    assert information(images, words, 0.1) == pytest.approx(expected, abs=1e-5)


def test_information_is_none_for_blind_wordings_and_full_for_certain_ones():
    images = torch.eye(4).repeat(5, 1)
    assert information(images, torch.eye(4), 0.01) == pytest.approx(math.log(4), abs=1e-4)
    assert information(images, torch.eye(4)[[0, 0, 0, 0]], 0.01) == pytest.approx(0, abs=1e-6)
    assert information(images[:1], torch.eye(4), 0.01) == pytest.approx(0, abs=1e-6)


def test_the_wording_whose_words_the_images_tell_apart_is_chosen():
    images = torch.eye(4).repeat(5, 1)
    blurred = normalize(torch.eye(4) + 0.8, dim=1)
    assert clearest(images, [blurred, torch.eye(4), blurred], 0.5) == 1
    assert clearest(images, [blurred, blurred], 0.5) == 0


def test_the_papers_sentence_is_among_the_wordings():
    assert wordings("color", "fruit")[0] == "fruit with a color of *"
    assert wordings("shape", "")[0] == "object with a shape of *"
    assert all(prompt.endswith("*") and prompt.count("*") == 1 for prompt in wordings("color", "fruit"))
