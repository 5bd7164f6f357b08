"""The dual encoder against transformers' own forward pass, on the demo CLIP and on a tiny SigLIP."""

import re
import shutil

import numpy as np
import pytest
import torch
from clip_space.class_proxies import class_proxies
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPModel,
    GemmaTokenizer,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

from covervlm.server import demo
from covervlm.server.clip.classifiers import Classifiers
from covervlm.server.clip.encoder.batched import BatchedEncoder
from covervlm.server.clip.encoder.encoder import ClipEncoder, TextTooLong
from covervlm.server.clip.encoder.templates import ENSEMBLE, check_class_names, check_templates
from covervlm.server.core.caller import Caller
from covervlm.server.engines.registry import build_engine
from covervlm.server.settings import Settings
from covervlm.server.wiring import build_clip

CLIP = str(demo.clip_path())


def pictures(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (60 + 10 * i, 90, 3), dtype=np.uint8)) for i in range(n)]


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return ClipEncoder(CLIP)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> str:
    """A SigLIP checkpoint of random weights; its tokenizer is the demo CLIP's."""
    path = tmp_path_factory.mktemp("siglip")
    tokenizer = AutoTokenizer.from_pretrained(CLIP)
    text = dict(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2)
    vision = dict(image_size=28, patch_size=14, hidden_size=16, intermediate_size=32, num_hidden_layers=2)
    config = SiglipConfig(
        text_config=text | dict(num_attention_heads=2, max_position_embeddings=16),
        vision_config=vision | dict(num_attention_heads=2),
    )
    torch.manual_seed(0)
    SiglipModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    SiglipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(path)
    return str(path)


def test_embeddings_are_those_of_transformers(encoder):
    model = CLIPModel.from_pretrained(CLIP, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CLIP)
    texts = ["a red star", "a photo of a big blue circle"]
    pixels = [encoder.preprocess(image) for image in pictures(3)]
    with torch.no_grad():
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        text = normalize(model.get_text_features(**inputs).pooler_output, dim=1)
        image = normalize(model.get_image_features(pixel_values=torch.stack(pixels)).pooler_output, dim=1)
    torch.testing.assert_close(encoder.embed_texts(texts), text, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.embed_pixels(pixels), image, atol=1e-5, rtol=0)
    assert encoder.tokenize(texts) == [tokenizer(t).input_ids for t in texts]
    assert encoder.temperature == pytest.approx(1 / float(model.logit_scale.detach().exp()))


def test_a_batch_changes_no_embedding(encoder):
    pixels = [encoder.preprocess(image) for image in pictures(3)]
    torch.testing.assert_close(
        encoder.embed_pixels(pixels), torch.cat([encoder.embed_pixels([p]) for p in pixels]), atol=1e-5, rtol=0
    )
    texts = ["a star", "a photo of a very large yellow ring"]
    torch.testing.assert_close(
        encoder.embed_texts(texts), torch.cat([encoder.embed_texts([t]) for t in texts]), atol=1e-5, rtol=0
    )


def test_class_proxies_are_normalised_means_over_the_templates(encoder):
    names = ["star", "ring", "cross"]
    proxies = class_proxies(encoder.embed_texts, names)
    for column, name in zip(proxies.T, names, strict=True):
        mean = torch.stack([encoder.embed_texts([t.replace("{}", name)])[0] for t in ENSEMBLE]).mean(0)
        torch.testing.assert_close(column, mean / mean.norm(), atol=1e-5, rtol=0)


def test_siglip_is_padded_as_it_was_trained(siglip):
    encoder = ClipEncoder(siglip)
    model, tokenizer = SiglipModel.from_pretrained(siglip).eval(), AutoTokenizer.from_pretrained(siglip)
    inputs = tokenizer(["a red star"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        reference = model.get_text_features(input_ids=inputs.input_ids).pooler_output
    torch.testing.assert_close(encoder.embed_texts(["a red star"]), normalize(reference, dim=1), atol=1e-5, rtol=0)
    assert encoder.embed_pixels([encoder.preprocess(pictures(1)[0])]).shape == (1, encoder.dimensions)
    assert torch.equal(encoder.visual_projection(), torch.eye(encoder.dimensions))


def test_texts_for_siglip_2_are_lower_case_as_its_own_tokenizer_makes_them(siglip, tmp_path):
    """Its checkpoints name Gemma's tokenizer, which reads other tokens in capitals than those it was trained on."""
    shutil.copytree(siglip, tmp_path, dirs_exist_ok=True)
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *"abcdefghijklmnoprstuvwxyzABCDEFGHIJKLMNOPRSTUVWXYZ"]
    vocabulary = {"vocab": {letter: number for number, letter in enumerate(letters)}, "merges": []}
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    GemmaTokenizer(**vocabulary).save_pretrained(tmp_path)
    encoder, reference = ClipEncoder(str(tmp_path)), Siglip2Tokenizer(**vocabulary)
    texts = ["A Red STAR", "a red star", "ÉTÉ"]
    assert [ids[-len(own) :] for ids, own in zip(encoder.tokenize(texts), reference(texts).input_ids, strict=True)] == (
        reference(texts).input_ids
    )
    torch.testing.assert_close(encoder.embed_texts(texts[:1]), encoder.embed_texts(texts[1:2]))
    words = encoder.prompt_tower("A Photo of a *").words(["STAR", "star"])
    assert torch.equal(words[0], words[1])


async def test_siglips_own_probabilities_are_those_of_transformers(siglip):
    encoder = ClipEncoder(siglip)
    model, tokenizer = SiglipModel.from_pretrained(siglip).eval(), AutoTokenizer.from_pretrained(siglip)
    names, images = ["red star", "blue ring", "dog"], pictures(3)
    texts = tokenizer([f"a photo of a {name}." for name in names], padding="max_length", max_length=16)
    pixels = torch.stack([encoder.preprocess(image) for image in images])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(texts.input_ids), pixel_values=pixels).logits_per_image
    batched = BatchedEncoder(encoder)
    classifiers = Classifiers(None, None, batched, None, None, model="siglip")
    for kind, expected in ((None, logits.sigmoid()), ("sigmoid", logits.sigmoid()), ("softmax", logits.softmax(dim=1))):
        _, told, answers, _ = await classifiers.classify(
            Caller("me"),
            images,
            classes=names,
            templates=("a photo of a {}.",),
            classifier=None,
            top=3,
            probabilities=kind,
        )
        assert told == (kind or "sigmoid")
        for answer, row in zip(answers, expected, strict=True):
            assert [dict(answer.top)[name] for name in names] == pytest.approx(row.tolist(), abs=1e-6)
    batched.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_at_load(siglip, tmp_path, value):
    shutil.copytree(siglip, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] = value
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"hold NaN or infinity, e\.g\. {re.escape(name)}"):
        ClipEncoder(str(tmp_path))


@pytest.mark.parametrize("prompt", ["a photo of a *", "fruit with a color of *", "*", " *"])
def test_a_prompt_with_a_learnable_word_reads_as_the_text_with_that_word(encoder, prompt):
    tower = encoder.prompt_tower(prompt)
    words = ["star", "ring", "red"]
    with torch.no_grad():
        ours = tower.encode(tower.words(words))
    reference = encoder.embed_texts([prompt.replace("*", word) for word in words])
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompt", ["a photo of a *", "*"])
def test_a_siglip_prompt_reads_as_the_text_with_that_word(siglip, prompt):
    encoder = ClipEncoder(siglip)
    tower = encoder.prompt_tower(prompt)
    with torch.no_grad():
        ours = tower.encode(tower.words(["star"]))
    torch.testing.assert_close(ours, encoder.embed_texts([prompt.replace("*", "star")]), atol=1e-5, rtol=0)


def test_gradients_reach_the_word_and_nothing_of_the_model(encoder):
    tower = encoder.prompt_tower("a photo of a *")
    word = tower.words(["star", "ring"]).requires_grad_(True)
    tower.encode(word).sum().backward()
    assert word.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in encoder.model.parameters())
    before = encoder.embed_texts(["a photo of a star"])
    tower.encode(torch.zeros(1, tower.word_dimensions))
    assert torch.equal(encoder.embed_texts(["a photo of a star"]), before)


def test_a_prompt_without_a_place_for_the_word_is_refused(encoder):
    for prompt in ("a photo", "a * photo", "* *"):
        with pytest.raises(ValueError, match="must end"):
            encoder.prompt_tower(prompt)


def test_a_prompt_that_the_text_tower_cannot_read_is_refused(encoder):
    assert encoder.text_limit == 24
    with pytest.raises(ValueError, match="reads 24 tokens at most"):
        encoder.prompt_tower("star " * 40 + "*")


def test_the_tower_of_a_loaded_llava_is_not_kept_twice():
    encoder = ClipEncoder(CLIP)
    llava = AutoModelForImageTextToText.from_pretrained(str(demo.model_path()), dtype=torch.float32)
    pixels = [encoder.preprocess(image) for image in pictures(2)]
    before = encoder.embed_pixels(pixels)
    freed = encoder.share_weights(llava.model.vision_tower)
    tower = dict(llava.model.vision_tower.named_parameters())
    assert freed >= sum(p.numel() * 4 for n, p in tower.items() if "post_layernorm" not in n)
    mine = {p.data_ptr() for p in encoder.model.vision_model.parameters()}
    assert len(mine & {p.data_ptr() for p in tower.values()}) >= len(mine) - 2
    torch.testing.assert_close(encoder.embed_pixels(pixels), before)
    with torch.no_grad():
        next(llava.model.vision_tower.parameters()).add_(1)
    assert ClipEncoder(CLIP).share_weights(llava.model.vision_tower) == 0


async def test_the_service_of_a_demo_server_shares_its_engines_tower(tmp_path):
    settings = Settings(data_dir=tmp_path, threads=1)
    engine = build_engine(settings)
    await engine.start()
    service = build_clip(settings, engine)
    await service.start()
    mine = {p.data_ptr() for p in service.encoder.model.vision_model.parameters()}
    theirs = {p.data_ptr() for p in engine.vision_tower.parameters()}
    assert len(mine & theirs) >= len(mine) - 2
    await service.stop()
    await engine.stop()


def test_texts_that_do_not_fit_and_models_that_are_no_clip_are_refused(encoder):
    with pytest.raises(TextTooLong, match="24 tokens at most") as caught:
        encoder.embed_texts(["fine", "star " * 40])
    assert caught.value.index == 1
    with pytest.raises(ValueError, match="not a CLIP or SigLIP"):
        ClipEncoder(str(demo.model_path()))


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "at least two"), (["star"], "at least two"), (["star", " Star "], "given twice"), (["star", "  "], "empty")],
)
def test_class_names_that_make_no_classifier_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        check_class_names(names)


@pytest.mark.parametrize(("names", "message"), [(["star", "Star"], "'star' differs in case"), (["a", "a"], "twice$")])
def test_a_class_given_twice_is_told_beside_its_like(names, message):
    with pytest.raises(ValueError, match=message):
        check_class_names(names)


@pytest.mark.parametrize("templates", [[], ["a photo"], ["{} and {}"], ["{0} {}"]])
def test_templates_without_one_place_for_the_name_are_refused(templates):
    with pytest.raises(ValueError, match="template"):
        check_templates(templates)
