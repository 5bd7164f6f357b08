"""Stage 3: train projector and language model to answer questions from the frozen tower's features."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from demo_model.features import SceneFeatures
from demo_model.optimisation import Log, Schedule, adamw, descend, seed_everything
from demo_model.packing import PackedQuestions, TokenisedQuestion, forward, tokenise
from demo_model.questions import KINDS, Question, ask
from demo_model.recipe import Recipe
from demo_model.scenes import COLOR_NAMES, SHAPES, SceneObject
from demo_model.tower import PATCHES, vision_config

SPARSE_COUNTS = [48, 64, 96, 128]
"""Vision tokens per image in sparse steps: what pruning feeds at inference."""
KIND_WEIGHT = {"color": 1.2, "shape": 1.4, "exist": 2.2, "count": 0.6, "where": 2.0, "describe": 0.8}
"""How often each kind of question is drawn, relative to the others."""
ALIGNMENT_WEIGHT = 0.1
ALIGNMENT_TEMPERATURE = 0.1


def new_llava(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """An untrained LLaVA-1.5 at toy size; output words start equal to input words."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=PATCHES,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.language_model.embed_tokens.weight)
        for layer in model.model.language_model.layers[:2]:
            nn.init.orthogonal_(layer.self_attn.q_proj.weight, 0.8)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    return model


def choose_tokens(owner: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n of the 576 tokens in raster order; half of the draws favour objects, and every object keeps at least two."""
    if n >= PATCHES:
        return np.arange(PATCHES)
    score = rng.random(PATCHES) + (owner >= 0) * rng.choice([0.0, 0.25, 0.5, 1.0])
    for thing in range(owner.max() + 1):
        mine = np.where(owner == thing)[0]
        score[rng.choice(mine, min(2, len(mine)), replace=False)] = 9
    return np.sort(np.argpartition(-score, n)[:n])


def choose_questions(questions: list[Question], rng: np.random.Generator, count: int) -> list[Question]:
    """`count` questions without repetition, kinds by their weight."""
    weight = np.array([KIND_WEIGHT[q.kind] for q in questions])
    per_kind = {kind: sum(q.kind == kind for q in questions) for kind in KINDS}
    weight /= np.array([per_kind[q.kind] for q in questions])
    chosen = rng.choice(len(questions), size=min(count, len(questions)), replace=False, p=weight / weight.sum())
    return [questions[i] for i in chosen]


def alignment_loss(
    model: LlavaForConditionalGeneration,
    image: Tensor,
    owner: Tensor,
    objects: list[tuple[SceneObject, ...]],
    words: dict[str, Tensor],
) -> Tensor:
    """Pull the projector's output on an object towards the input embeddings of its colour's and its shape's word.

    image: (B, n, d); owner: (B, n); words: token ids of all colours and shapes. The rows of a question can only find
    their patches where words and patches live in one space, which a small model does not learn by itself.
    """
    b, t = torch.where(owner >= 0)
    patches = F.normalize(image[b, t], dim=-1)
    seen = [objects[i][o] for i, o in zip(b.tolist(), owner[b, t].tolist(), strict=True)]
    targets = {
        "color": [COLOR_NAMES.index(thing.color) for thing in seen],
        "shape": [SHAPES.index(thing.shape) for thing in seen],
    }
    loss = image.new_zeros(())
    for name, ids in words.items():
        embeddings = F.normalize(model.model.language_model.embed_tokens(ids), dim=-1)
        logits = patches @ embeddings.T / ALIGNMENT_TEMPERATURE
        loss = loss + F.cross_entropy(logits, torch.tensor(targets[name]))
    return loss


def answer_loss(logits: Tensor, packed: PackedQuestions, weights: Tensor, eos: int) -> Tensor:
    """Cross-entropy on the answers' tokens, weighted per question; the end of an answer weighs a fifth."""
    on = packed.targets != -100
    target = packed.targets[on]
    weight = weights[torch.where(on)[0], packed.owner[on]] * torch.where(target == eos, 0.2, 1.0)
    return (F.cross_entropy(logits[on], target, reduction="none") * weight).sum() / weight.sum()


@torch.no_grad()
def accuracy(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, data: SceneFeatures
) -> dict[str, float]:
    """Share of questions per kind whose greedy answer is exactly right, with all 576 tokens."""
    hits: dict[str, list[bool]] = {}
    for i, scene in enumerate(data.scenes):
        questions = ask(scene, np.random.default_rng(i))
        packed = PackedQuestions.of([[tokenise(tokenizer, q.text, q.answer) for q in questions]], tokenizer)
        logits, _ = forward(model, torch.from_numpy(data.features[i : i + 1]).float(), packed)
        wrong = (logits.argmax(-1) != packed.targets) & (packed.targets != -100)
        for k, q in enumerate(questions):
            hits.setdefault(q.kind, []).append(not bool(wrong[packed.owner == k].any()))
    return {kind: float(np.mean(values)) for kind, values in hits.items()}


def train_language(
    tower: CLIPVisionModel, tokenizer: PreTrainedTokenizerFast, data: SceneFeatures, recipe: Recipe
) -> tuple[LlavaForConditionalGeneration, Log]:
    """The trained model, around the given tower, which is left as it is."""
    rng, log = seed_everything(2), Log("language")
    model = new_llava(tokenizer)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.vision_tower.requires_grad_(False)
    train, validation = data.split(recipe.language_scenes)
    optimizer = adamw([model.model.multi_modal_projector, model.model.language_model, model.lm_head], 0.05)
    phases = [(recipe.language_sparse_steps, 0.7), (recipe.language_full_steps, 0.3)]
    schedule = Schedule(1e-3, recipe.language_warmup, phases)
    words = {
        name: torch.tensor([tokenizer(" " + w, add_special_tokens=False).input_ids[0] for w in names])
        for name, names in (("color", COLOR_NAMES), ("shape", SHAPES))
    }
    order: list[int] = []
    for step in range(schedule.steps):
        full = step >= recipe.language_sparse_steps
        batch, n = (4, PATCHES) if full else (16, int(rng.choice(SPARSE_COUNTS)))
        if len(order) < batch:
            order += rng.permutation(len(train.scenes)).tolist() * -(-batch // len(train.scenes))
        drawn = [order.pop() for _ in range(batch)]
        kept = [choose_tokens(train.owner[i], n, rng) for i in drawn]
        questions = [choose_questions(ask(train.scenes[i], rng), rng, 8 if full else 7) for i in drawn]
        tokenised: list[list[TokenisedQuestion]] = [
            [tokenise(tokenizer, q.text, q.answer) for q in row] for row in questions
        ]
        packed = PackedQuestions.of(tokenised, tokenizer)
        features = np.stack([train.features[i][k] for i, k in zip(drawn, kept, strict=True)])
        owner = torch.from_numpy(np.stack([train.owner[i][k] for i, k in zip(drawn, kept, strict=True)]))
        logits, image = forward(model, torch.from_numpy(features).float(), packed)
        weights = torch.zeros(batch, max(map(len, questions)))
        for b, row in enumerate(questions):
            weights[b, : len(row)] = torch.tensor([0.4 if q.kind == "describe" else 1.0 for q in row])
        answers = answer_loss(logits, packed, weights, tokenizer.eos_token_id)
        alignment = alignment_loss(model, image, owner, [train.scenes[i].objects for i in drawn], words)
        descend(optimizer, answers + ALIGNMENT_WEIGHT * alignment, schedule.rate(step))
        if step % 50 == 0 or step + 1 == schedule.steps:
            log(step=step, tokens=n, answer_loss=answers.item(), alignment_loss=alignment.item())
    model.eval()
    log(**accuracy(model, tokenizer, validation))
    return model, log
