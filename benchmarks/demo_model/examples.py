"""Choose and write the example pictures that ship with the demo model.

    python benchmarks/demo_model/examples.py --out server/demo/scenes

For each kind of question it takes the first scene of the `examples` split with four or five objects whose question the
model answers right, unpruned and with 64 vision tokens. Examples chosen so show what a right answer looks like; they
say nothing about how often answers are right.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
if __name__ == "__main__":
    # In place of this folder, whose modules are meant to be imported as demo_model.something only.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from covervlm.server.core.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    PruningPolicy,
    SamplingParams,
)
from covervlm.server.demo import model_path
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from demo_model.questions import Question, ask
from demo_model.scenes import make_scene
from demo_model.splits import FIRST_SEED

EXAMPLES = [("color", None), ("shape", None), ("where", None), ("exist", "yes"), ("count", None)]
POLICIES = [PruningPolicy(), PruningPolicy(keep_tokens=64)]
PALETTE = 128
"""Colours of a stored picture; the background's noise makes a full-colour PNG more than twice as large."""


async def answers(engine: TransformersEngine, path: Path, question: str) -> list[str]:
    """What the model says about the stored picture, unpruned and pruned."""
    image = Image.open(path).convert("RGB")
    said = []
    for policy in POLICIES:
        message = Message("user", (ImagePart(image, str(path)), question))
        request = GenerationRequest(str(path), (message,), SamplingParams(max_tokens=8, temperature=0.0), policy)
        said.append("".join([chunk.text async for chunk in engine.generate(request)]).strip())
    return said


def candidate(seed: int, kind: str, answer: str | None) -> Question | None:
    found = [q for q in ask(make_scene(seed), np.random.default_rng(seed)) if q.kind == kind]
    return next((q for q in found if answer in (None, q.answer)), None)


async def write_examples(out: Path) -> None:
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), feature_cache_bytes=0))
    await engine.start()
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    seed = FIRST_SEED["examples"]
    for kind, wanted in EXAMPLES:
        while True:
            seed += 1
            question = candidate(seed, kind, wanted)
            if len(make_scene(seed).objects) < 4 or question is None:
                continue
            path = out / f"{kind}.png"
            stored = make_scene(seed).image.quantize(PALETTE, dither=Image.Dither.NONE)
            stored.save(path, optimize=True)
            if set(await answers(engine, path, question.text)) == {question.answer}:
                break
        entries.append({"file": path.name, "seed": seed, "question": question.text, "answer": question.answer})
        print(entries[-1])
    (out / "scenes.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    await engine.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    asyncio.run(write_examples(parser.parse_args().out))


if __name__ == "__main__":
    main()
