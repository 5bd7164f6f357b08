"""Tell why a classifier labels a picture as it does.

Examples:

    covervlm explain bird.jpg --classifier birds.safetensors -o why.png
    covervlm explain bird.jpg --classifier birds --against robin --words "red,brown,long beak" --url http://127.0.0.1:8000
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from covervlm.clients import Explanation
from covervlm.server.cli.arguments import check_folder, count, names, read_file
from covervlm.server.cli.classify import stored
from covervlm.server.cli.connect import add_server_arguments, connect
from covervlm.server.cli.errors import file_errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a picture")
    parser.add_argument(
        "--classifier", metavar="NAME", required=True, help="a classifier on the server, or its downloaded file"
    )
    parser.add_argument("--label", metavar="A", help="why this class (default: the likeliest)")
    parser.add_argument("--against", metavar="B", help="rather than that one (default: the likeliest other)")
    parser.add_argument(
        "--words",
        type=names,
        metavar="A,B,C",
        default=[],
        help="explain the decision by these, or by @FILE's lines",
    )
    parser.add_argument(
        "--neighbours", type=count, metavar="N", default=5, help="nearest examples to name (default: 5)"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="draw which patches speak for the label")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_server_arguments(parser, clip=True)


def run(arguments: argparse.Namespace) -> None:
    check_folder(arguments.out)
    data = read_file(arguments.image)
    with connect(arguments) as client, stored(client, arguments.classifier) as classifier:
        found = client.explain(
            str(classifier),
            data,
            label=arguments.label,
            against=arguments.against,
            words=arguments.words,
            neighbours=arguments.neighbours,
        )
    if arguments.out is not None:
        with file_errors(arguments.out):
            found.overlay(data).save(arguments.out)
    print(json.dumps(asdict(found)) if arguments.json else "\n".join(_lines(found)))


def _lines(found: Explanation) -> Iterator[str]:
    yield f"{found.label} rather than {found.against}: ahead by {found.difference:.3f}"
    for one in found.classes:
        alike = "" if one.similarity is None else f", similarity {one.similarity:.3f} to its examples"
        yield f"{one.label}\tprobability {one.probability:.3f}{alike}"
    for near in found.neighbours:
        yield f"like {near.id}\t{near.label}, similarity {near.similarity:.3f}"
    if found.words is not None:
        weights = sorted(found.words.items(), key=lambda part: -abs(part[1]))
        yield "in words: " + ", ".join(f"{word} {weight:+.3f}" for word, weight in weights)
        yield f"{found.unexplained:.0%} of the decision is not in these words"
    if found.region is not None:
        yield f"the explanation is exact up to a distance of {found.region.distance:.4f} from the picture's embedding"
