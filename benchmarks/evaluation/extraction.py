"""A folder of scenes with known truth to a table, by `covervlm extract`, at several budgets.

Every scene has exactly one star and one blue object, so that one schema fits them all. Scenes are those of the accuracy
benchmark's seeds, which no training and no tuning has touched.
"""

import csv
import json
import os
import tempfile
import time
from pathlib import Path

from demo_model.questions import NUMBERS, PLACES
from demo_model.scenes import COLOR_NAMES, SHAPES, Scene, make_scene
from demo_model.splits import FIRST_SEED

from covervlm.server.cli import main
from covervlm.server.cli.own_server import own_server
from covervlm.server.tuning.intervals import share_interval

SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": list(COLOR_NAMES), "description": "What color is the star?"},
        "shape": {"enum": list(SHAPES), "description": "What shape is the blue object?"},
        "count": {"enum": NUMBERS[1:], "description": "How many objects are there?"},
        "place": {"enum": list(PLACES), "description": "Where is the star?"},
    },
}
ROWS = {
    "576, all": ["--method", "none", "--one-by-one"],
    "64": ["--keep-tokens", "64", "--one-by-one"],
    "16": ["--keep-tokens", "16", "--one-by-one"],
    "576, one JSON object": ["--method", "none", "--max-tokens", "120", "--question"],
}
"""What the command is told; the last asks all questions at once."""


def truth(scene: Scene) -> dict[str, str] | None:
    """What the table should say; None for a scene that the schema does not fit."""
    stars = [thing for thing in scene.objects if thing.shape == "star"]
    blue = [thing for thing in scene.objects if thing.color == "blue"]
    if len(stars) != 1 or len(blue) != 1 or stars[0].place is None:
        return None
    named = {"color": stars[0].color, "shape": blue[0].shape}
    return {**named, "count": NUMBERS[len(scene.objects)], "place": stars[0].place}


def table(scenes: int) -> str:
    """Accuracy of each column, with 95 % intervals, in Markdown."""
    properties = SCHEMA["properties"]
    questions = " ".join(part["description"] for part in properties.values())
    lines = [
        f"| vision tokens kept | {' | '.join(properties)} | all four | seconds |",
        "|---" * (len(properties) + 3) + "|",
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "scenes"
        folder.mkdir()
        known: dict[str, dict[str, str]] = {}
        seed = FIRST_SEED["quality"]
        while len(known) < scenes:
            if right := truth(scene := make_scene(seed)):
                path = folder / f"{seed}.png"
                scene.image.save(path)
                known[str(path)] = right
            seed += 1
        (schema := Path(place) / "schema.json").write_text(json.dumps(SCHEMA))
        options = {"model": "demo", "clip_model": "none", "threads": "1"}
        with own_server(options) as (url, key):
            for number, (row, told) in enumerate(ROWS.items()):
                told = [*told, questions] if told[-1] == "--question" else told
                out = Path(place) / f"{number}.csv"
                started = time.perf_counter()
                main(
                    [
                        "extract",
                        str(folder),
                        "--schema",
                        str(schema),
                        "-o",
                        str(out),
                        "--url",
                        url,
                        "--api-key",
                        key,
                        *told,
                    ]
                )
                seconds = time.perf_counter() - started
                with out.open(newline="") as file:
                    read = {one["image"]: one for one in csv.DictReader(file)}
                hits = [
                    [read.get(path, {}).get(name) == right[name] for name in right] for path, right in known.items()
                ]
                columns = [*zip(*hits, strict=True), [all(hit) for hit in hits]]
                cells = []
                for column in columns:
                    share = share_interval(column, range(scenes))
                    cells.append(f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})".replace("%", " %"))
                missing = f"; {scenes - len(read)} without an answer" if len(read) < scenes else ""
                lines.append(f"| {row}{missing} | {' | '.join(cells)} | {seconds:.0f} |")
                print(lines[-1], f"(load {os.getloadavg()[0]:.1f})", flush=True)
    return "\n".join(lines)
