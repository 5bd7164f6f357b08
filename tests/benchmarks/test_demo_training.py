"""Every training stage end to end in a few steps, and the parts whose mistakes a falling loss would hide."""

import math

import numpy as np
import pytest
import torch
from demo_model.language import choose_tokens, new_llava
from demo_model.optimisation import Schedule
from demo_model.packing import PackedQuestions, forward, tokenise
from demo_model.recipe import Recipe
from demo_model.scenes import COLOR_NAMES, SHAPES, make_scene
from demo_model.splits import FIRST_SEED
from demo_model.tokenization import clip_tokenizer, llava_tokenizer
from demo_model.tower import LAYERS, encode, new_tower, normalise, to_patches
from demo_model.train import train
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, LlavaForConditionalGeneration

from covervlm.server.demo import clip_path, model_path

TINY = Recipe(
    vision_sparse_steps=6,
    vision_full_steps=2,
    vision_warmup=2,
    vision_pool=12,
    vision_validation_scenes=1,
    language_sparse_steps=6,
    language_full_steps=2,
    language_warmup=2,
    language_scenes=12,
    language_validation_scenes=1,
    clip_steps=10,
    clip_warmup=2,
    clip_scenes=16,
    clip_validation_scenes=2,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("demo")
    return out, train(out, TINY)


@pytest.mark.parametrize(("stage", "loss"), [("vision", "dense_loss"), ("language", "answer_loss"), ("clip", "loss")])
def test_the_loss_of_every_stage_falls_within_a_few_steps(trained, stage, loss):
    _, logs = trained
    losses = [entry[loss] for entry in logs[stage].entries if loss in entry]
    assert len(losses) == 2  # the first step and the last
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


def test_the_checkpoints_load_in_transformers_and_answer(trained):
    out, _ = trained
    model = LlavaForConditionalGeneration.from_pretrained(out / "llava", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(out / "llava")
    scene = make_scene(FIRST_SEED["tests"])
    inputs = processor(images=scene.image, text="USER: <image>\nWhat is it? ASSISTANT:", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert inputs["input_ids"].shape[1] < output.shape[1] <= inputs["input_ids"].shape[1] + 3

    clip = CLIPModel.from_pretrained(out / "clip", dtype=torch.float32)
    clip_inputs = AutoProcessor.from_pretrained(out / "clip")(
        images=Image.new("RGB", (336, 336)), text=["a star"], return_tensors="pt"
    )
    assert clip(**clip_inputs).logits_per_image.shape == (1, 1)


def test_the_checkpoints_have_the_shipped_models_tensors_and_share_a_tower(trained):
    out, _ = trained
    for name, shipped in (("llava", model_path()), ("clip", clip_path())):
        new, old = (load_file(folder / "model.safetensors") for folder in (out / name, shipped))
        assert {k: (v.shape, v.dtype) for k, v in new.items()} == {k: (v.shape, v.dtype) for k, v in old.items()}
    llava, clip = (load_file(out / name / "model.safetensors") for name in ("llava", "clip"))
    patches = "embeddings.patch_embedding.weight"
    (tower,) = [v for k, v in llava.items() if k.endswith(patches)]
    assert torch.equal(tower, clip[f"vision_model.{patches}"])


@pytest.mark.parametrize(("make", "path"), [(llava_tokenizer, model_path), (clip_tokenizer, clip_path)])
def test_the_tokenizers_are_the_shipped_ones(make, path):
    assert make().get_vocab() == AutoTokenizer.from_pretrained(path()).get_vocab()


def test_every_colour_and_shape_is_one_token_inside_a_sentence():
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    for word in [*COLOR_NAMES, *SHAPES]:
        assert len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1


def test_the_towers_own_forward_over_all_patches_equals_transformers():
    torch.manual_seed(0)
    tower = new_tower().eval()
    pixels = np.asarray(make_scene(FIRST_SEED["tests"]).image)
    processor = AutoProcessor.from_pretrained(model_path()).image_processor
    with torch.no_grad():
        inputs = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values
        expected = tower(inputs, output_hidden_states=True).hidden_states
        ids = torch.arange(576)[None]
        patches = normalise(to_patches(pixels))[None]
        for layers in (LAYERS - 1, LAYERS):
            torch.testing.assert_close(encode(tower, patches, ids, layers), expected[layers], rtol=1e-4, atol=1e-4)


def test_packed_questions_are_answered_as_if_each_were_asked_alone():
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = new_llava(tokenizer).eval()
    features = torch.randn(2, 30, 128)
    rows = [
        [tokenise(tokenizer, "What color is the star?", "red"), tokenise(tokenizer, "Where is it?", "top left")],
        [tokenise(tokenizer, "Is there a red ring?", "no")],
    ]
    with torch.no_grad():
        packed = PackedQuestions.of(rows, tokenizer)
        together, _ = forward(model, features, packed)
        embed = model.model.language_model.embed_tokens
        for b, row in enumerate(rows):
            image = model.model.multi_modal_projector(features[b])
            for k, (asked, answer) in enumerate(row):
                prompt = torch.cat([embed(torch.tensor(tokenizer("USER: ").input_ids)), image])
                alone = torch.cat([prompt, embed(torch.tensor(asked + answer))])
                states = model.model.language_model(inputs_embeds=alone[None]).last_hidden_state
                expected = model.lm_head(states[0, len(prompt) :])
                torch.testing.assert_close(together[b][packed.owner[b] == k], expected, rtol=1e-4, atol=1e-4)
                targets = packed.targets[b][packed.owner[b] == k]
                assert targets[targets != -100].tolist() == answer
                assert answer[-1] == tokenizer.eos_token_id


def test_sparse_steps_keep_two_patches_of_every_object():
    rng = np.random.default_rng(0)
    owner = np.full(576, -1)
    owner[[3, 4, 5]], owner[[100]], owner[200:260] = 0, 1, 2
    for _ in range(20):
        chosen = choose_tokens(owner, 48, rng)
        assert len(chosen) == 48 == len(set(chosen))
        assert (np.diff(chosen) > 0).all()
        assert (owner[chosen] == 0).sum() >= 2
        assert (owner[chosen] == 1).sum() == 1
        assert (owner[chosen] == 2).sum() >= 2


def test_the_schedule_warms_up_and_decays_by_the_shares_of_its_phases():
    schedule = Schedule(peak=1.0, warmup=10, phases=[(100, 0.8), (20, 0.2)], floor=0.0)
    assert schedule.steps == 120
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.progress(100) == pytest.approx(0.8)
    assert schedule.rate(100) == pytest.approx(0.5 * (1 + math.cos(0.8 * math.pi)))
    assert schedule.rate(110) == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))


def test_a_scaled_recipe_scales_every_count():
    half = Recipe().scaled(0.5)
    assert half.language_sparse_steps == 760
    assert half.clip_scenes == 1000
    assert Recipe().scaled(1e-6).vision_sparse_steps == 8
