"""Stage 1: train the vision tower to know, in every patch, the shape, colour and centre of the object it shows."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel

from demo_model.drawing import GRID, PATCH, SIZE
from demo_model.labels import PatchLabels, patch_labels
from demo_model.optimisation import Log, Schedule, adamw, descend, seed_everything
from demo_model.recipe import Recipe
from demo_model.scenes import COLOR_NAMES, SHAPES, Scene, make_scene
from demo_model.splits import FIRST_SEED
from demo_model.tower import LAYERS, PATCHES, WIDTH, encode, new_tower, normalise, run_layer, to_patches

SPARSE_PATCHES = 128
"""Patches per image in sparse steps."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A scene as the tower sees it: patches (576, 588) uint8, their labels, and what the image holds, (80,) float32."""

    patches: np.ndarray
    labels: PatchLabels
    content: np.ndarray

    @classmethod
    def of(cls, scene: Scene) -> "Sample":
        content = np.zeros(len(SHAPES) * len(COLOR_NAMES) + len(SHAPES) + len(COLOR_NAMES), np.float32)
        for thing in scene.objects:
            shape, color = SHAPES.index(thing.shape), COLOR_NAMES.index(thing.color)
            content[[shape * 8 + color, 64 + shape, 72 + color]] = 1
        return cls(to_patches(np.asarray(scene.image)), patch_labels(scene), content)

    def mirrored(self) -> "Sample":
        pixels = self.patches.reshape(GRID, GRID, 3, PATCH, PATCH)[:, ::-1, :, :, ::-1]
        return Sample(pixels.reshape(PATCHES, -1), self.labels.mirrored(), self.content)


@dataclass(frozen=True, eq=False)
class Batch:
    patches: Tensor
    ids: Tensor
    labels: dict[str, Tensor]
    content: Tensor

    @classmethod
    def of(cls, samples: list[Sample], n: int, rng: np.random.Generator) -> "Batch":
        """n patches of every sample."""
        ids = [choose_patches(s.labels.owner, n, rng) for s in samples]
        labels = [s.labels.take(i) for s, i in zip(samples, ids, strict=True)]
        return cls(
            normalise(np.stack([s.patches[i] for s, i in zip(samples, ids, strict=True)])),
            torch.from_numpy(np.stack(ids)),
            {
                name: torch.from_numpy(np.stack([getattr(item, name) for item in labels]))
                for name in ("shape", "color", "owner", "center", "core")
            },
            torch.from_numpy(np.stack([s.content for s in samples])),
        )


def choose_patches(owner: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n patch ids in raster order: objects first, then most of their neighbours, then anything."""
    if n >= PATCHES:
        return np.arange(PATCHES)
    on = (owner >= 0).reshape(GRID, GRID)
    padded = np.pad(on, 1)
    near = np.zeros((GRID, GRID), bool)
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            near |= padded[dy : dy + GRID, dx : dx + GRID]
    score = rng.random(PATCHES) + 2 * on.reshape(-1) + near.reshape(-1) * (rng.random(PATCHES) < 0.8)
    return np.sort(np.argpartition(-score, n)[:n])


class DenseHead(nn.Module):
    """Training-only read-outs of the patches in hidden_states[-2] and of the CLS token."""

    def __init__(self) -> None:
        super().__init__()
        self.shape, self.color = nn.Linear(WIDTH, len(SHAPES) + 1), nn.Linear(WIDTH, len(COLOR_NAMES) + 1)
        self.center, self.core = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 1)
        self.content = nn.Linear(WIDTH, 80)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        states = F.layer_norm(states, states.shape[-1:])
        return self.shape(states), self.color(states), self.center(states), self.core(states)[..., 0]


def dense_loss(head: DenseHead, states: Tensor, labels: dict[str, Tensor]) -> Tensor:
    """Shape and colour of every patch (objects weigh as much as 3.3 backgrounds), centre and core of the objects."""
    shape, color, center, core = head(states)
    on = labels["shape"] > 0
    weight = torch.where(on, 1.0 / on.sum().clamp(min=1), 0.3 / (~on).sum().clamp(min=1)).flatten()

    def classify(logits: Tensor, target: Tensor) -> Tensor:
        return (F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none") * weight).sum()

    where = F.smooth_l1_loss(center[on], labels["center"][on], beta=0.05)
    cores = F.binary_cross_entropy_with_logits(core, labels["core"], pos_weight=torch.tensor(8.0))
    return classify(shape, labels["shape"]) + classify(color, labels["color"]) + 2 * where + cores


@torch.no_grad()
def accuracy(tower: CLIPVisionModel, head: DenseHead, samples: list[Sample]) -> dict[str, float]:
    """Share of objects whose patches, voting, name the right shape and colour; error of the centre in pixels."""
    rng = np.random.default_rng(0)
    hits: dict[str, list[float]] = {"shape": [], "color": [], "background": [], "center_pixels": []}
    for start in range(0, len(samples), 8):
        batch = Batch.of(samples[start : start + 8], PATCHES, rng)
        shape, color, center, _ = head(encode(tower, batch.patches, batch.ids, LAYERS - 1)[:, 1:])
        on = batch.labels["shape"] > 0
        hits["background"] += (shape.argmax(-1) == 0)[~on].tolist()
        hits["center_pixels"] += ((center - batch.labels["center"])[on].norm(dim=-1) * SIZE).tolist()
        for b, owners in enumerate(batch.labels["owner"]):
            for thing in owners[owners >= 0].unique():
                mine = owners == thing
                for name, logits in (("shape", shape), ("color", color)):
                    vote = logits[b][mine].log_softmax(-1)[:, 1:].sum(0).argmax() + 1
                    hits[name].append(float(vote == batch.labels[name][b][mine][0]))
    return {name: float(np.mean(values)) for name, values in hits.items()}


def train_vision(recipe: Recipe) -> tuple[CLIPVisionModel, Log]:
    """The trained tower."""
    rng, log = seed_everything(1), Log("vision")
    tower, head = new_tower(), DenseHead()
    optimizer = adamw([tower, head], weight_decay=0.02)
    phases = [(recipe.vision_sparse_steps, 0.84), (recipe.vision_full_steps, 0.16)]
    schedule = Schedule(1e-3, recipe.vision_warmup, phases)
    validation = [Sample.of(make_scene(FIRST_SEED["validation"] + i)) for i in range(recipe.vision_validation_scenes)]
    pool: list[Sample] = []
    seed = FIRST_SEED["vision"]
    for step in range(schedule.steps):
        full = step >= recipe.vision_sparse_steps
        # Painting a scene costs a third of a step, so scenes come from a pool that is renewed bit by bit.
        fresh = min(64, recipe.vision_pool) if not pool else (3 if full else 6)
        for _ in range(fresh):
            pool.append(Sample.of(make_scene(seed)))
            seed += 1
        del pool[: -recipe.vision_pool]
        drawn = [pool[i] for i in rng.integers(len(pool), size=8 if full else 16)]
        drawn = [s.mirrored() if rng.random() < 0.5 else s for s in drawn]
        batch = Batch.of(drawn, PATCHES if full else SPARSE_PATCHES, rng)
        states = encode(tower, batch.patches, batch.ids, LAYERS - 1)
        dense = dense_loss(head, states[:, 1:], batch.labels)
        loss = dense
        if schedule.progress(step) > 0.5:  # the last layer, which only the CLS token reads, joins half-way
            last = run_layer(tower.encoder.layers[-1], states)
            content = head.content(tower.post_layernorm(last[:, 0]))
            loss = loss + F.binary_cross_entropy_with_logits(content, batch.content)
        descend(optimizer, loss, schedule.rate(step))
        if step % 50 == 0 or step + 1 == schedule.steps:
            log(step=step, dense_loss=dense.item(), scenes=seed - FIRST_SEED["vision"])
    tower.eval()
    log(**accuracy(tower, head, validation))
    return tower, log
