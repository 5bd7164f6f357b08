"""Stage 2: run the frozen tower over the scenes that the language model will learn from."""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import CLIPVisionModel

from demo_model.labels import patch_labels
from demo_model.scenes import Scene, make_scene
from demo_model.splits import FIRST_SEED
from demo_model.tower import LAYERS, PATCHES, WIDTH, encode, normalise, to_patches


@dataclass(frozen=True, eq=False)
class SceneFeatures:
    """Scenes without pixels, their features (scenes, 576, d) float16, and patch owners (scenes, 576), -1 for none."""

    scenes: list[Scene]
    features: np.ndarray
    owner: np.ndarray

    def split(self, first: int) -> tuple["SceneFeatures", "SceneFeatures"]:
        """The first `first` scenes, and the rest."""
        return (
            SceneFeatures(self.scenes[:first], self.features[:first], self.owner[:first]),
            SceneFeatures(self.scenes[first:], self.features[first:], self.owner[first:]),
        )


@torch.no_grad()
def scene_features(tower: CLIPVisionModel, count: int) -> SceneFeatures:
    """hidden_states[-2] of the patches of `count` scenes, none of which the tower was trained on."""
    features = np.empty((count, PATCHES, WIDTH), np.float16)
    owner = np.empty((count, PATCHES), np.int64)
    scenes = []
    ids = torch.arange(PATCHES)[None]
    for i in tqdm(range(count), desc="features", unit="scene"):
        scene = make_scene(FIRST_SEED["language"] + i)
        patches = normalise(to_patches(np.asarray(scene.image)))[None]
        features[i] = encode(tower, patches, ids, LAYERS - 1)[0, 1:].half().numpy()
        owner[i] = patch_labels(scene).owner
        scenes.append(make_scene(FIRST_SEED["language"] + i))  # a second one, without the painted pixels
    return SceneFeatures(scenes, features, owner)
