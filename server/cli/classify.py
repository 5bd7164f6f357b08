"""Label pictures by the names of classes alone, or with a classifier that the server has learned.

Examples:

    covervlm classify *.jpg --classes "cat,dog,a person on a bicycle"
    covervlm classify photos/ --classes @names.txt --top 3 --json
"""

import argparse
import json
from pathlib import Path

from covervlm.clients import BadRequestError, Classification, Client
from covervlm.clients.progress import progress_bar
from covervlm.server.cli.arguments import blame, count, names, pictures
from covervlm.server.cli.asked_server import add_server_arguments, asked_server

AT_ONCE = 32
"""Pictures in one request."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files, or folders of pictures")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--classes", type=names, metavar="A,B,C", help="names to choose from, or @FILE with one a line")
    kind.add_argument("--classifier", metavar="NAME", help="a classifier that the server keeps")
    parser.add_argument(
        "--top", type=count, metavar="N", default=1, help="how many of the likeliest to tell (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_server_arguments(parser, clip=True)


def run(arguments: argparse.Namespace) -> None:
    paths = pictures(arguments.images)
    with asked_server(arguments) as client, progress_bar() as move:
        found: list[Classification] = []
        for start in range(0, len(paths), AT_ONCE):
            move(start / len(paths), f"{start} of {len(paths)} pictures")
            found += _labels(client, paths[start : start + AT_ONCE], arguments)
    if arguments.json:
        labelled = [
            {
                "image": str(path),
                "label": one.label,
                "probability": one.probability,
                "top": [{"label": label, "probability": probability} for label, probability in one.top],
            }
            for path, one in zip(paths, found, strict=True)
        ]
        print(json.dumps({"images": labelled}))
        return
    for path, one in zip(paths, found, strict=True):
        print(f"{path}\t" + "\t".join(f"{label} {probability:.3f}" for label, probability in one.top))


def _labels(client: Client, paths: list[Path], arguments: argparse.Namespace) -> list[Classification]:
    try:
        return client.classify(paths, arguments.classes, classifier=arguments.classifier, top=arguments.top)
    except BadRequestError as error:
        raise blame(error, paths) from None
