"""Group pictures by an aspect that you name: the same pictures form other groups by "color" than by "shape".

Examples:

    covervlm cluster photos/ --aspect color --words red,green,blue
    covervlm cluster photos/ --aspect mood --subject dog --json
"""

import argparse
import json
from pathlib import Path

from covervlm.clients import BadRequestError, Client, Clustering
from covervlm.server.cli.arguments import blame, count, names, pictures
from covervlm.server.cli.asked_server import add_server_arguments, asked_server
from covervlm.server.cli.problems import USAGE, CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="FOLDER", help="folders of pictures, or files")
    parser.add_argument("--aspect", required=True, help='what to group by, e.g. "color"')
    parser.add_argument("--words", type=names, metavar="A,B,C", help="its values, or @FILE (default: ask the model)")
    parser.add_argument("--subject", help='what the pictures show, e.g. "fruit"')
    parser.add_argument("--clusters", type=count, metavar="N", help="how many groups (default: as many as fit best)")
    parser.add_argument("--method", choices=["multi_map", "multi_sub", "clip_kmeans"], help="(default: multi_map)")
    parser.add_argument("--prompt", help='sentence that ends in * for the value, e.g. "a photo of something *"')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_server_arguments(parser, clip=True)


def run(arguments: argparse.Namespace) -> None:
    paths = pictures(arguments.images)
    if len(paths) < 2:
        raise CommandError("there is one picture only; groups are made of at least two", USAGE)
    with asked_server(arguments) as client:
        found = _clusters(client, paths, arguments)
    members: list[list[str]] = [[] for _ in found.clusters]
    for path, label in zip(paths, found.labels, strict=True):
        members[label].append(str(path))
    if arguments.json:
        about = {"aspect": found.aspect, "words": found.words, "silhouette": found.silhouette}
        groups = [
            {"name": cluster.name, "size": cluster.size, "images": images}
            for cluster, images in zip(found.clusters, members, strict=True)
        ]
        print(json.dumps({**about, "clusters": groups}))
        return
    for cluster, images in zip(found.clusters, members, strict=True):
        print(f"{cluster.name}: {cluster.size}", *images, sep="\n  ")


def _clusters(client: Client, paths: list[Path], arguments: argparse.Namespace) -> Clustering:
    try:
        job = client.cluster(
            paths,
            arguments.aspect,
            words=arguments.words,
            subject=arguments.subject,
            clusters=arguments.clusters,
            method=arguments.method,
            prompt=arguments.prompt,
            seed=arguments.seed,
        )
    except BadRequestError as error:
        raise blame(error, paths) from None
    try:
        return client.jobs.wait(job, progress=True)
    except KeyboardInterrupt:
        client.jobs.cancel(job)
        raise
