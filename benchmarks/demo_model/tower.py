"""The CLIP vision tower of the demo models: its size, its start, and a forward pass over some of the patches."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from demo_model.drawing import GRID, PATCH, SIZE

PATCHES = GRID * GRID
WIDTH = 128
LAYERS = 6
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=64,
    )


def new_tower() -> CLIPVisionModel:
    """An untrained tower that starts with sine positions and query = key, so that attention is local from the start."""
    tower = CLIPVisionModel(vision_config())
    waves = 2 * math.pi / torch.logspace(math.log10(4), math.log10(60), WIDTH // 4)
    axis = torch.arange(GRID).float()[:, None] * waves
    axis = torch.cat([axis.sin(), axis.cos()], 1)
    positions = torch.cat([axis[:, None].expand(-1, GRID, -1), axis[None].expand(GRID, -1, -1)], 2)
    with torch.no_grad():
        tower.embeddings.position_embedding.weight[1:] = positions.reshape(PATCHES, WIDTH) * 0.5
        tower.embeddings.patch_embedding.weight.normal_(0, 0.02)
        for i, layer in enumerate(tower.encoder.layers):
            nn.init.orthogonal_(layer.self_attn.q_proj.weight, 1.4 if i < 3 else 1.0)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    return tower


def to_patches(image: np.ndarray) -> np.ndarray:
    """(336, 336, 3) uint8 to (576, 588) uint8, channel-first inside a patch, as the tower's convolution reads it."""
    patches = image.reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 4, 1, 3)
    return patches.reshape(PATCHES, 3 * PATCH * PATCH)


def normalise(patches: np.ndarray) -> Tensor:
    """Patches of any leading shape to float32 with CLIP's mean and deviation."""
    channels = patches.astype(np.float32).reshape(*patches.shape[:-1], 3, -1)
    channels = (channels / 255 - MEAN[:, None]) / STD[:, None]
    return torch.from_numpy(channels.reshape(patches.shape))


def run_layer(layer: nn.Module, states: Tensor) -> Tensor:
    return layer(states, attention_mask=None)


def encode(tower: CLIPVisionModel, patches: Tensor, ids: Tensor, layers: int) -> Tensor:
    """Run some of an image's patches, each with its own position embedding, through the first `layers` layers.

    patches: (B, n, 588) normalised. ids: (B, n) their places in the image. Returns (B, 1 + n, d), CLS first; with all
    576 patches this is `hidden_states[layers]` of the transformers model.
    """
    embeddings = tower.embeddings
    x = patches @ embeddings.patch_embedding.weight.flatten(1).T + embeddings.position_embedding(ids + 1)
    cls = (embeddings.class_embedding + embeddings.position_embedding.weight[0]).expand(len(x), 1, -1)
    x = tower.pre_layrnorm(torch.cat([cls, x], 1))
    for layer in tower.encoder.layers[:layers]:
        x = run_layer(layer, x)
    return x
