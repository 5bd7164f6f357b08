"""CDPruner's relevance as released, on the demo model, whose tower is the demo CLIP's, against transformers' CLIP."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from covervlm.server.core.errors import EngineUnavailable, InvalidRequest
from covervlm.server.demo import clip_path, model_path
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.engines.registry import build_engine
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.selection.clip_relevance import ClipRelevance
from covervlm.server.settings import Settings
from tests.pruners.test_methods_against_references import slow_cdpruner
from tests.server.models.tiny_llava import save_tiny_llava

QUESTION = "Where is the blue square?"


@pytest.fixture(scope="module")
def clip():
    return CLIPModel.from_pretrained(clip_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def adapter():
    return load_adapter(Checkpoint(model_path(), "cpu", "float32"))


@torch.inference_mode()
def slow_cosines(clip, pixels, texts) -> torch.Tensor:
    """The mean over texts of what CLIP's own modules say: patches one by one through the head of the CLS token."""
    states = clip.vision_model(pixels[None], output_hidden_states=True).hidden_states[-2][0, 1:]
    tokenizer = AutoTokenizer.from_pretrained(clip_path())
    rows = []
    for patch in states:
        projected = normalize(clip.visual_projection(clip.vision_model.post_layernorm(patch)), dim=0)
        rows.append(projected)
    means = []
    for text in texts:
        embedded = clip.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0]
        means.append(torch.stack(rows) @ normalize(embedded, dim=0))
    return torch.stack(means).mean(dim=0)


def test_cosines_are_those_of_clips_own_heads(clip, adapter, scene):
    inputs = adapter.preprocess(scene(3))
    [image] = adapter.encode([inputs])
    relevance = ClipRelevance(str(clip_path()), adapter)
    got = relevance.cosines(image.features, relevance.text(QUESTION))
    torch.testing.assert_close(got, slow_cosines(clip, inputs["pixel_values"], [QUESTION]), atol=1e-5, rtol=0)


def test_a_question_longer_than_the_text_tower_reads_is_read_in_stretches(clip, adapter, scene):
    inputs = adapter.preprocess(scene(3))
    [image] = adapter.encode([inputs])
    relevance = ClipRelevance(str(clip_path()), adapter)
    text = relevance.text(" ".join(["star red"] * 30))  # 60 tokens, 22 beside the two special ones at a time
    assert len(text) == 3
    stretches = [" ".join(["star red"] * pairs) for pairs in (11, 11, 8)]
    expected = slow_cosines(clip, inputs["pixel_values"], stretches)
    torch.testing.assert_close(relevance.cosines(image.features, text), expected, atol=1e-5, rtol=0)
    assert len(relevance.text(" \n")) == 0


async def test_a_request_keeps_what_a_slow_version_of_the_release_keeps(clip, adapter, scene, ask, answer):
    engine = build_engine(Settings(threads=1))
    await engine.start()
    pruning = {"method": "cdpruner", "parameters": (("relevance", "clip"),), "keep_tokens": 8, "return_indices": True}
    for number in (0, 3):
        inputs = adapter.preprocess(scene(number))
        [image] = adapter.encode([inputs])
        seen = _Seen(image.tokens, slow_cosines(clip, inputs["pixel_values"], [QUESTION]))
        got = await answer(engine, ask(scene(number), QUESTION, pruning=pruning))
        assert list(got.prompt.images[0].indices) == slow_cdpruner(seen, 8)
        words = await answer(engine, ask(scene(number), QUESTION, pruning=pruning | {"parameters": ()}))
        assert words.prompt.images[0].indices != got.prompt.images[0].indices
    await engine.stop()


class _Seen:
    """What the slow version reads of an image."""

    text = None

    def __init__(self, tokens, cosines):
        self.tokens, self.clip_cosines = tokens, cosines
        self.allowed = torch.ones(len(tokens), dtype=torch.bool)


async def test_without_a_clip_checkpoint_the_parameter_is_refused_and_the_words_are_named(scene, ask, answer):
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), threads=1))
    await engine.start()
    pruning = {"method": "cdpruner", "parameters": (("relevance", "clip"),), "keep_tokens": 8}
    with pytest.raises(InvalidRequest, match=r"--clip-model names the checkpoint.*'words'") as refused:
        await answer(engine, ask(scene(0), QUESTION, pruning=pruning))
    assert refused.value.param == "vision_pruning.parameters.relevance"
    await engine.stop()


def test_a_clip_of_another_tower_is_refused_and_a_tuned_one_is_not(adapter, tmp_path):
    shutil.copytree(clip_path(), tmp_path / "tuned")
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(w.shape, generator=generator) for name, w in weights.items() if w.dim() > 1}
    tuned = {n: (w + 0.05 * w.float().std() * noise[n]).to(w.dtype) if n in noise else w for n, w in weights.items()}
    save_file(tuned, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    assert len(ClipRelevance(str(tmp_path / "tuned"), adapter).text(QUESTION)) == 1
    other = {n: noise[n].to(w.dtype) if "vision_model" in n and n in noise else w for n, w in weights.items()}
    save_file(other, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidRequest, match="names another one"):
        ClipRelevance(str(tmp_path / "tuned"), adapter).text(QUESTION)


def test_a_clip_of_another_shape_is_refused(tmp_path):
    save_tiny_llava(tmp_path)
    with pytest.raises(InvalidRequest, match="names another one"):
        ClipRelevance(str(clip_path()), load_adapter(Checkpoint(tmp_path))).text(QUESTION)


def test_a_checkpoint_that_is_no_clip_or_cannot_be_read_is_told_as_that(adapter, tmp_path):
    with pytest.raises(InvalidRequest, match="--clip-model names"):
        ClipRelevance(str(model_path()), adapter).text(QUESTION)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="log says why"):
            ClipRelevance(str(tmp_path), adapter).text(QUESTION)
