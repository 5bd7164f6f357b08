"""The built-in demo models and example pictures, shipped as package data so that they need no network."""

import json
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class ExampleScene:
    """A picture with a question that the demo model answers right, also with 64 of its 576 vision tokens."""

    path: Path
    question: str
    answer: str


def model_path() -> Path:
    """Folder of the demo vision-language model, a transformers LLaVA-1.5 checkpoint.

    Its weights are stored as float16; on a CPU load them as float32, which is about five times faster.
    """
    return _HERE / "llava"


def clip_path() -> Path:
    """Folder of the demo CLIP, a transformers checkpoint on the same vision tower."""
    return _HERE / "clip"


def example_scenes() -> list[ExampleScene]:
    """The example pictures in a fixed order, one per kind of question that the model is good at."""
    entries = json.loads((_HERE / "scenes" / "scenes.json").read_text(encoding="utf-8"))
    return [ExampleScene(_HERE / "scenes" / e["file"], e["question"], e["answer"]) for e in entries]


def example_gallery() -> list[Path]:
    """Pictures of one shape each, to label and to group; a name tells colour, shape and the scene's seed."""
    return sorted((_HERE / "gallery").glob("*.webp"))
