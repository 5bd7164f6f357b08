"""Label pictures by the names of classes alone, or with a classifier, which `covervlm train` makes.

Examples:

    covervlm classify *.jpg --classes "cat,dog,a person on a bicycle"
    covervlm classify photos/ --classes @names.txt --top 3 --json
    covervlm classify photos/ --classifier birds.safetensors --abstain-below 0.9
    covervlm classify photos/ --classes "cat,dog" --points photos.parquet
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from covervlm.clients import Classification, Client, Embeddings
from covervlm.clients.jobs import progress_bar
from covervlm.server.cli.arguments import Taken, count, names, pictures
from covervlm.server.cli.connect import add_server_arguments, connect
from covervlm.server.cli.errors import CommandError
from covervlm.server.cli.points import add_points, check_points_file, write_points_file

AT_ONCE = 32
"""Pictures in one request."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files, or folders of pictures")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--classes", type=names, metavar="A,B,C", help="names to choose from, or @FILE with one per line")
    kind.add_argument("--classifier", metavar="NAME", help="a classifier on the server, or its downloaded file")
    parser.add_argument("--top", type=count, metavar="N", default=1, help="likeliest classes to print (default: 1)")
    parser.add_argument(
        "--abstain-below", type=float, metavar="P", default=0.0, help="print ? for labels of less confidence than this"
    )
    add_points(parser, "label, confidence")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_server_arguments(parser, clip=True)


def run(arguments: argparse.Namespace) -> None:
    paths = pictures(arguments.images)
    if arguments.points is not None:
        check_points_file(arguments.points)
    taken = Taken()
    vectors: list[Embeddings] = []
    found: list[tuple[Path, Classification]] = []
    with connect(arguments) as client, progress_bar() as move, stored(client, arguments.classifier) as classifier:

        def labels(some: list[Path]) -> list[Classification]:
            if not some:
                return []
            return client.classify(
                some,
                arguments.classes,
                classifier=classifier,
                top=arguments.top,
                abstain_below=arguments.abstain_below,
            )

        for start in range(0, len(paths), AT_ONCE):
            move(start / len(paths), f"{start} of {len(paths)} pictures")
            left, answers = taken.ask(paths[start : start + AT_ONCE], labels, fewest=0)
            found += zip(left, answers, strict=True)
            if left and arguments.points is not None:
                vectors.append(client.embed_images(left))
    if found and arguments.points is not None:
        columns: dict[str, list[Any]] = {
            "label": [one.label for _, one in found],
            "confidence": [one.confidence for _, one in found],
            "margin": [one.margin for _, one in found],
            "abstained": [one.abstained for _, one in found],
        }
        write_points_file(arguments.points, [path for path, _ in found], vectors, columns)
    if arguments.json:
        labelled = [
            {
                "image": str(path),
                "label": one.label,
                "confidence": one.confidence,
                "margin": one.margin,
                "abstained": one.abstained,
                "top": [{"label": label, "probability": probability} for label, probability in one.top],
            }
            for path, one in found
        ]
        print(json.dumps({"images": labelled}))
    else:
        for path, one in found:
            unsure = "?\t" if one.abstained else ""
            print(f"{path}\t{unsure}" + "\t".join(f"{label} {probability:.3f}" for label, probability in one.top))
    taken.end()


@contextmanager
def stored(client: Client, classifier: str | None) -> Iterator[str | None]:
    """The classifier's name on the server; one in a file is there for as long as the block runs."""
    if classifier is None or not Path(classifier).is_file():
        if classifier is not None and Path(classifier).name != classifier:  # no name has a slash
            raise CommandError(f"{classifier}: there is no such file")
        yield classifier
        return
    card = client.classifiers.upload("from-a-file", Path(classifier))
    try:
        yield f"{card.name}@{card.version}"
    finally:
        client.classifiers.delete(f"{card.name}@{card.version}")
