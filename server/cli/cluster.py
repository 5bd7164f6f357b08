"""Group pictures by an aspect that you name: by "color", the same pictures form other groups than by "shape".

Examples:

    covervlm cluster photos/ --aspect color --words red,green,blue
    covervlm cluster photos/ --aspect mood --subject dog --json
    covervlm cluster photos/ --aspect color --words red,green,blue --points photos.parquet
"""

import argparse
import json
import sys
from pathlib import Path

from covervlm.clients import Client, Clustering
from covervlm.server.cli.arguments import Taken, add_parameters, count, names, pictures
from covervlm.server.cli.connect import add_server_arguments, connect, finished
from covervlm.server.cli.errors import USAGE, CommandError
from covervlm.server.cli.points import add_points, check_points_file, write_points_file
from covervlm.server.clip.methods.registry import method_names

AT_ONCE = 32
"""Pictures in one request for their vectors."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="FOLDER", help="folders of pictures, or files")
    parser.add_argument("--aspect", required=True, help='what to group by, e.g. "color"')
    parser.add_argument("--words", type=names, metavar="A,B,C", help="its values, or @FILE (default: ask the model)")
    parser.add_argument("--subject", help='what the pictures show, e.g. "fruit"')
    parser.add_argument("--clusters", type=count, metavar="N", help="how many groups (default: as many as fit best)")
    methods = method_names("group")
    parser.add_argument("--method", choices=methods, help=f"(default: {methods[0]})")
    add_parameters(parser)
    parser.add_argument(
        "--prompt", help='sentence that ends in * for the value, e.g. "a photo of something *"; "*" is the value alone'
    )
    parser.add_argument("--seed", type=int, default=0)
    add_points(parser, "label")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_server_arguments(parser, clip=True)


def run(arguments: argparse.Namespace) -> None:
    paths = pictures(arguments.images)
    if len(paths) < 2:
        raise CommandError("there is only one picture; give at least two to group", USAGE)
    if arguments.points is not None:
        check_points_file(arguments.points)
    taken = Taken()
    with connect(arguments) as client:
        paths, found = taken.ask(paths, lambda some: _clusters(client, some, arguments), fewest=2)
        if arguments.points is not None:
            vectors = [client.embed_images(paths[start : start + AT_ONCE]) for start in range(0, len(paths), AT_ONCE)]
            write_points_file(arguments.points, paths, vectors, {"label": found.names}, found.projection)
    members: list[list[str]] = [[] for _ in found.clusters]
    for path, label in zip(paths, found.labels, strict=True):
        members[label].append(str(path))
    if arguments.json:
        about = {"aspect": found.aspect, "words": found.words, "silhouette": found.silhouette}
        groups = [
            {"name": cluster.name, "size": cluster.size, "images": images}
            for cluster, images in zip(found.clusters, members, strict=True)
        ]
        print(json.dumps({**about, "warnings": found.raw.get("warnings", []), "clusters": groups}))
    else:
        for cluster, images in zip(found.clusters, members, strict=True):
            print(f"{cluster.name}: {cluster.size}", *images, sep="\n  ")
        for remark in found.raw.get("warnings", []):
            print(remark, file=sys.stderr)
    taken.end()


def _clusters(client: Client, paths: list[Path], arguments: argparse.Namespace) -> Clustering:
    job = client.cluster(
        paths,
        arguments.aspect,
        words=arguments.words,
        subject=arguments.subject,
        clusters=arguments.clusters,
        method=arguments.method,
        prompt=arguments.prompt,
        parameters=dict(arguments.set) if arguments.set else None,
        seed=arguments.seed,
    )
    return finished(client, job)
