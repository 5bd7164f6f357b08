"""Text-guided proxies on a toy image-text space where each image has two aspects."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from covervlm.server.clip.methods.contracts import Pictures, Placed, silent
from covervlm.server.clip.methods.kmeans import kmeans
from covervlm.server.clip.methods.multi_map import MultiMaP
from covervlm.server.clip.methods.multi_sub import MultiSub

VALUES = 4


class LinearPrompt:
    """Words live in a space of their own; the prompt takes them to one aspect's part of the image space."""

    def __init__(self, offset: int) -> None:
        self.matrix = torch.zeros(VALUES, 2 * VALUES)
        self.matrix[:, offset : offset + VALUES] = torch.eye(VALUES)

    def encode(self, word: Tensor) -> Tensor:
        return normalize(word @ self.matrix + 1e-3, dim=1)


@pytest.fixture
def scene():
    """Images whose first aspect is loud and whose second is quiet, with words for both."""
    generator = torch.Generator().manual_seed(0)
    loud, quiet = (torch.randint(VALUES, (160,), generator=generator) for _ in range(2))
    images = torch.cat([one_hot(loud, VALUES), 0.35 * one_hot(quiet, VALUES)], dim=1).float()
    return normalize(images + 0.03 * torch.randn(images.shape, generator=generator), dim=1), loud, quiet


def nearest_words(images, prompt, references) -> Tensor:
    return Pictures(images, torch.eye(2 * VALUES), prompt, references[0], references).nearest_words()


def multi_map(images, prompt, concept, references, *, progress=silent, **parameters) -> Placed:
    pictures = Pictures(images, torch.eye(2 * VALUES), prompt, concept, references)
    return MultiMaP(**parameters).place(pictures, seed=0, progress=progress)


def multi_sub(hidden, projection, prompt, references, *, seed=0, progress=silent, **parameters) -> Placed:
    pictures = Pictures(hidden, projection, prompt, references[0], references)
    return MultiSub(**parameters).place(pictures, seed=seed, progress=progress)


def same_partition(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a[:, None] == a[None], b[:, None] == b[None])


@pytest.mark.parametrize("method", ["multi_map", "multi_sub"])
def test_the_prompt_decides_which_of_two_aspects_the_clusters_show(scene, method):
    images, loud, quiet = scene
    words = torch.eye(VALUES)
    assert same_partition(kmeans(images, VALUES), loud)
    for offset, aspect in ((0, loud), (VALUES, quiet)):
        prompt = LinearPrompt(offset)
        if method == "multi_map":
            proxies = multi_map(images, prompt, words.mean(0), words)
        else:
            proxies = multi_sub(images, torch.eye(2 * VALUES), prompt, words, rounds=4)
        assert same_partition(proxies.words, aspect)
        assert same_partition(kmeans(proxies.points, VALUES), aspect)


def test_multi_map_treats_each_image_on_its_own(scene, monkeypatch):
    images, _, _ = scene
    words, prompt = torch.eye(VALUES), LinearPrompt(0)
    monkeypatch.setattr(MultiMaP, "batch_size", 160)
    together = multi_map(images, prompt, words.mean(0), words).points
    monkeypatch.setattr(MultiMaP, "batch_size", 7)
    apart = multi_map(images, prompt, words.mean(0), words).points
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=0)


def test_multi_map_descends_its_objective(scene, monkeypatch):
    images, _, _ = scene
    words, prompt = torch.eye(VALUES), LinearPrompt(0)
    monkeypatch.setattr(MultiMaP, "batch_size", 160)
    losses: list[tuple[float, float]] = []
    multi_map(images, prompt, words.mean(0), words, progress=lambda share, loss: losses.append((share, loss)))
    assert losses[0][1] > losses[-1][1]
    assert [share for share, _ in losses] == sorted(share for share, _ in losses)
    assert losses[-1][0] == 1.0


def test_heavy_regularisers_keep_the_word_at_its_reference(scene):
    images, _, _ = scene
    words, prompt = torch.eye(VALUES), LinearPrompt(0)
    start = nearest_words(images, prompt, words)
    held = multi_map(images, prompt, words[0], words, concept_weight=0.0, reference_weight=1e6).points
    torch.testing.assert_close(held, prompt.encode(words[start]), atol=0.02, rtol=0)


def test_multi_sub_repeats_and_leaves_the_projection_given_alone(scene):
    images, _, _ = scene
    words, prompt, projection = torch.eye(VALUES), LinearPrompt(0), torch.eye(2 * VALUES)
    first = multi_sub(images, projection, prompt, words, rounds=1, seed=4)
    second = multi_sub(images, projection, prompt, words, rounds=1, seed=4)
    assert torch.equal(first.points, second.points)
    assert torch.equal(projection, torch.eye(2 * VALUES))


def test_progress_can_end_a_fit(scene):
    class Stop(Exception):
        pass

    def stop(_share: float, loss: float) -> None:
        raise Stop

    images, _, _ = scene
    words, prompt = torch.eye(VALUES), LinearPrompt(0)
    with pytest.raises(Stop):
        multi_map(images, prompt, words[0], words, progress=stop)
    with pytest.raises(Stop):
        multi_sub(images, torch.eye(2 * VALUES), prompt, words, progress=stop)


def test_what_cannot_be_clustered_is_refused(scene):
    images, _, _ = scene
    words, prompt = torch.eye(VALUES), LinearPrompt(0)
    with pytest.raises(ValueError, match="at least one image"):
        multi_map(images[:0], prompt, words[0], words)
    with pytest.raises(ValueError, match="at least two reference words"):
        multi_sub(images, torch.eye(2 * VALUES), prompt, words[:1])
    with pytest.raises(ValueError, match="finite"):
        multi_map(images * float("nan"), prompt, words[0], words)
