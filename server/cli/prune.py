"""Ask which vision tokens of an image a question needs, without generating an answer, and draw them.

The picture that -o writes shows the kept patches bright and the others dimmed. Example:

    covervlm prune photo.jpg "What color is the bus?" --keep 64 -o overlay.png
"""

import argparse
import dataclasses
import json
from pathlib import Path

from covervlm.clients import BadRequestError, PruneResult
from covervlm.server.cli.arguments import add_budget, budget_of, read_file
from covervlm.server.cli.connect import add_server_arguments, connect
from covervlm.server.cli.errors import CommandError, file_errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a PNG, JPEG, WebP, GIF or BMP file")
    parser.add_argument("question", metavar="QUESTION", help="the question that guides the selection")
    add_budget(parser, default="default: 64")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="draw the kept patches, e.g. to overlay.png")
    parser.add_argument("--json", action="store_true", help="print the whole report, with indices, as JSON")
    add_server_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    budget = budget_of(arguments)
    if not any(budget[name] for name in ("keep_tokens", "keep_ratio", "coverage")):
        budget["keep_tokens"] = 64
    data = read_file(arguments.image)
    with connect(arguments) as client:
        try:
            kept = client.prune(data, arguments.question, **budget)
        except BadRequestError as error:
            where = f"{arguments.image}: " if (error.param or "").startswith("messages") else ""
            raise CommandError(f"{where}{error}") from None
    if arguments.output:
        _draw(arguments.output, data, kept)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(kept)))
    else:
        coverage = "" if kept.coverage is None else f", coverage {kept.coverage:.3f}"
        print(f"{kept.method} keeps {kept.kept} of {kept.total} vision tokens{coverage}, {kept.milliseconds:.1f} ms")


def _draw(path: Path, image: bytes, kept: PruneResult) -> None:
    if kept.grid is None:
        raise CommandError("this model's vision tokens do not form a single grid, so they cannot be drawn")
    try:
        with file_errors(path):
            kept.overlay(image).save(path)
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from None
