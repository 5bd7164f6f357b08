"""How long every training stage runs and on how much data: counts of steps and scenes, never seconds."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Recipe:
    """The counts by which the shipped weights were trained.

    "Sparse" steps see a subset of an image's 576 patches, which is several times cheaper; "full" steps see them all.
    """

    vision_sparse_steps: int = 2788
    vision_full_steps: int = 196
    vision_warmup: int = 200
    vision_pool: int = 400
    vision_validation_scenes: int = 48
    language_sparse_steps: int = 1520
    language_full_steps: int = 572
    language_warmup: int = 150
    language_scenes: int = 4460
    language_validation_scenes: int = 40
    clip_steps: int = 3000
    clip_warmup: int = 100
    clip_scenes: int = 2000
    clip_validation_scenes: int = 400

    def scaled(self, factor: float) -> "Recipe":
        """Every count multiplied by `factor`, but at least 8: to try the programs out, not to train."""
        return Recipe(**{f.name: max(8, round(getattr(self, f.name) * factor)) for f in fields(self)})
