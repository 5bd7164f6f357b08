"""Train the built-in demo models from scratch: about 75 minutes on one CPU thread.

    python benchmarks/demo_model/train.py --out DIR

writes DIR/llava and DIR/clip. Seeds and step counts are fixed; with the same versions and one thread a rerun gives the
same weights. `--scale 0.01` runs every stage at a hundredth of its length, to try the programs out.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
if __name__ == "__main__":
    # In place of this folder, whose modules are meant to be imported as demo_model.something only.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from demo_model.checkpoint import save_clip, save_llava
from demo_model.clip import train_clip
from demo_model.features import scene_features
from demo_model.language import train_language
from demo_model.optimisation import Log
from demo_model.recipe import Recipe
from demo_model.tokenization import clip_tokenizer, llava_tokenizer
from demo_model.vision import train_vision


def train(out: Path, recipe: Recipe) -> dict[str, Log]:
    """Run every stage and write both checkpoints; returns what each stage logged."""
    tower, vision_log = train_vision(recipe)
    data = scene_features(tower, recipe.language_scenes + recipe.language_validation_scenes)
    tokenizer = llava_tokenizer()
    llava, language_log = train_language(tower, tokenizer, data, recipe)
    captions = clip_tokenizer()
    clip, clip_log = train_clip(tower, captions, recipe)
    # One tower for both: CLIP's differs in the last norm only, which LLaVA does not read.
    llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    save_llava(llava, tokenizer, out / "llava")
    save_clip(clip, captions, out / "clip")
    return {"vision": vision_log, "language": language_log, "clip": clip_log}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--scale", type=float, default=1.0, help="length of every stage; 1 is the shipped models'")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.time()
    recipe = Recipe() if arguments.scale == 1 else Recipe().scaled(arguments.scale)
    train(arguments.out, recipe)
    print(f"{arguments.out}: trained in {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
