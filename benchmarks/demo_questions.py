"""Write drawn scenes with questions and their true answers, as `covervlm tune` reads them.

    python benchmarks/demo_questions.py results/questions --count 300

The scenes are those for investigations (benchmarks/demo_model/splits.py), which no training has seen. Each row also has
the question's `kind`, for --by.
"""

import argparse
import json
from pathlib import Path

from evaluation.question_sets import SETS, question_set, scene_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=list(SETS), default="standard")
    parser.add_argument("--count", type=int, default=300)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with (arguments.folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for item in question_set(arguments.set, arguments.count, split="tuning"):
            image = f"{item.set}-{item.seed}.png"
            if not (arguments.folder / image).exists():
                scene_of(item.set, item.seed).image.save(arguments.folder / image)
            row = {"image": image, "question": item.question, "answer": item.answer, "kind": item.kind}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
