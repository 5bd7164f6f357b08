"""Stage 4: train a CLIP text tower and both projections on the frozen vision tower."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

from demo_model.optimisation import Log, Schedule, adamw, descend, seed_everything
from demo_model.questions import article
from demo_model.recipe import Recipe
from demo_model.scenes import COLOR_NAMES, SHAPES, make_scene
from demo_model.splits import FIRST_SEED
from demo_model.tokenization import CAPTIONS
from demo_model.tower import LAYERS, PATCHES, encode, normalise, to_patches, vision_config

BATCH = 96
HELD_OUT_PAIRS = [(shape, (3 * shape + 1) % len(COLOR_NAMES)) for shape in range(len(SHAPES))]
"""(shape, colour) pairs that the text tower never sees in training."""


def new_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision_config().to_dict(), projection_dim=64))


@torch.no_grad()
def cls_states(tower: CLIPVisionModel, first_seed: int, count: int) -> tuple[Tensor, Tensor]:
    """CLS states before the last norm (count, d), and (count, 2) shape and colour, of one-object scenes."""
    states, names = [], []
    ids = torch.arange(PATCHES)[None]
    for seed in tqdm(range(first_seed, first_seed + count), desc="CLIP images", unit="scene"):
        scene = make_scene(seed, n_objects=1)
        patches = normalise(to_patches(np.asarray(scene.image)))[None]
        states.append(encode(tower, patches, ids, LAYERS)[0, 0])
        thing = scene.objects[0]
        names.append((SHAPES.index(thing.shape), COLOR_NAMES.index(thing.color)))
    return torch.stack(states), torch.tensor(names)


def embed_images(model: CLIPModel, states: Tensor) -> Tensor:
    return F.normalize(model.visual_projection(model.vision_model.post_layernorm(states)), dim=-1)


def embed_texts(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    pooled = model.text_model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


@torch.no_grad()
def accuracy(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, states: Tensor, names: Tensor) -> dict[str, float]:
    """Zero-shot accuracy on shapes, colours and their pairs, with one caption each."""
    images = embed_images(model, states)

    def classify(captions: list[str]) -> Tensor:
        return (images @ embed_texts(model, tokenizer, captions).T).argmax(1)

    pairs = classify([f"a photo of {article(c)} {c} {s}" for s in SHAPES for c in COLOR_NAMES])
    shapes = classify([f"a photo of a {s}" for s in SHAPES])
    colors = classify([f"a photo of {article(c)} {c} object" for c in COLOR_NAMES])
    return {
        "shape": (shapes == names[:, 0]).float().mean().item(),
        "color": (colors == names[:, 1]).float().mean().item(),
        "pair": (pairs == names[:, 0] * len(COLOR_NAMES) + names[:, 1]).float().mean().item(),
    }


def caption_batch(names: Tensor, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    """One caption per image, and (images, captions) float32: 1 where a caption is true of an image."""
    captions = []
    true = torch.zeros(len(names), len(names))
    for j, (shape, color) in enumerate(names.tolist()):
        kind = str(rng.choice(["pair", "shape", "color"], p=[0.6, 0.2, 0.2]))
        c, s = COLOR_NAMES[color], SHAPES[shape]
        captions.append(str(rng.choice(CAPTIONS[kind])).format(a=article(c), c=c, s=s))
        fits_shape, fits_color = names[:, 0] == shape, names[:, 1] == color
        true[:, j] = ((fits_shape | (kind == "color")) & (fits_color | (kind == "shape"))).float()
    return captions, true


def contrastive_loss(logits: Tensor, true: Tensor) -> Tensor:
    """CLIP's symmetric loss, in which every caption that is true of an image counts as right.

    logits, true: (images, captions).
    """
    by_image = true / true.sum(1, keepdim=True)
    by_caption = true / true.sum(0, keepdim=True)
    return -(by_image * logits.log_softmax(1)).sum(1).mean() - (by_caption * logits.log_softmax(0)).sum(0).mean()


def train_clip(tower: CLIPVisionModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> tuple[CLIPModel, Log]:
    """The trained model; of the tower only the last norm, which LLaVA does not read, is trained on."""
    rng, log = seed_everything(3), Log("clip")
    model = new_clip(tokenizer)
    model.vision_model.load_state_dict(tower.state_dict())
    model.vision_model.requires_grad_(False)
    model.vision_model.post_layernorm.requires_grad_(True)
    states, names = cls_states(model.vision_model, FIRST_SEED["clip"], recipe.clip_scenes)
    held_out = torch.zeros(len(SHAPES), len(COLOR_NAMES), dtype=torch.bool)
    for shape, color in HELD_OUT_PAIRS:
        held_out[shape, color] = True
    train = ~held_out[names[:, 0], names[:, 1]]
    states, names = states[train], names[train]
    trained = [model.text_model, model.text_projection, model.visual_projection, model.vision_model.post_layernorm]
    optimizer = adamw(trained, weight_decay=0.05)
    optimizer.add_param_group({"params": [model.logit_scale], "weight_decay": 0.0})
    schedule = Schedule(1e-3, recipe.clip_warmup, [(recipe.clip_steps, 1.0)])
    for step in range(schedule.steps):
        drawn = torch.from_numpy(rng.integers(len(states), size=BATCH))
        captions, true = caption_batch(names[drawn], rng)
        noisy = states[drawn] + 0.05 * states.std(0) * torch.randn(BATCH, states.shape[1])
        scale = model.logit_scale.exp().clamp(max=60)
        logits = embed_images(model, noisy) @ embed_texts(model, tokenizer, captions).T * scale
        loss = contrastive_loss(logits, true)
        descend(optimizer, loss, schedule.rate(step), clip=None)
        if step % 250 == 0 or step + 1 == schedule.steps:
            log(step=step, loss=loss.item())
    model.eval()
    validation = cls_states(model.vision_model, FIRST_SEED["clip_validation"], recipe.clip_validation_scenes)
    log(**accuracy(model, tokenizer, *validation))
    return model, log
