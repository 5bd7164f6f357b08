"""Label or group pictures as they come, learning from each: of a folder, or by paths that come line by line.

Examples:

    covervlm stream photos/ --classes "cat,dog,a person on a bicycle"
    inotifywait -mqe close_write --format %w%f inbox/ | covervlm stream - --classes @names.txt --horizon 10000 --json
    covervlm stream photos/ --classes cat,dog --method coke --set ratio=0.2
    covervlm stream monday/ --classes cat,dog --horizon 5000 --keep --url http://127.0.0.1:8000
    covervlm stream tuesday/ --name ID --url http://127.0.0.1:8000     (the ID that the first one printed)
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from covervlm.clients import Client, ImageStream
from covervlm.server.cli.arguments import Taken, add_parameters, count, names, pictures
from covervlm.server.cli.columns import aligned
from covervlm.server.cli.connect import add_server_arguments, connect, server_url
from covervlm.server.cli.errors import USAGE, CommandError
from covervlm.server.clip.methods.registry import method_names

AT_ONCE = 32
"""Pictures of a folder in one request; paths from a pipe are asked about one by one, since the next may be long in
coming."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="files, or folders; - for paths, a line each, from stdin"
    )
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--classes", type=names, metavar="A,B,C", help="names to choose from, or @FILE, one per line")
    start.add_argument("--name", metavar="ID", help="continue a stream that was kept")
    methods = method_names("stream")
    parser.add_argument(
        "--method", choices=methods, help=f"{methods[0]} labels, coke makes groups (default: {methods[0]})"
    )
    add_parameters(parser)
    parser.add_argument(
        "--horizon", type=count, metavar="N", help="pictures to expect (default: those given; needed with -)"
    )
    parser.add_argument("--top", type=count, metavar="N", default=1, help="likeliest classes to print (default: 1)")
    parser.add_argument("--keep", action="store_true", help="keep the stream on the server for --name")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each picture, and one at the end")
    add_server_arguments(parser, clip=True)


def run(arguments: argparse.Namespace) -> None:
    piped = arguments.images == [Path("-")]
    _check(arguments, piped=piped)
    paths = [] if piped else pictures(arguments.images)
    batches = _lines() if piped else (paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE))
    taken = Taken()
    with connect(arguments) as client, _opened(client, arguments, horizon=arguments.horizon or len(paths)) as stream:
        for batch in batches:
            _observe(client, stream, batch, taken, arguments)
        _report(client.streams.get(stream), arguments)
    taken.end()


def _check(arguments: argparse.Namespace, *, piped: bool) -> None:
    """Raises CommandError for options that do not go together."""
    if (arguments.keep or arguments.name) and not server_url(arguments):
        raise CommandError("--keep and --name are for a server that outlives the command; name it with --url", USAGE)
    if arguments.name and (arguments.method or arguments.set or arguments.horizon):
        raise CommandError("--method, --set and --horizon are for a new stream; drop them, or --name", USAGE)
    if piped and not (arguments.name or arguments.horizon):
        raise CommandError("how many paths to expect cannot be told from a pipe; say so with --horizon", USAGE)


def _lines() -> Iterator[list[Path]]:
    """The path of each line of stdin, as soon as it is there."""
    for line in sys.stdin:
        if path := line.rstrip("\r\n"):
            yield [Path(path)]


@contextmanager
def _opened(client: Client, arguments: argparse.Namespace, *, horizon: int) -> Iterator[ImageStream]:
    """The stream to observe in; a new one that nobody asked to keep is deleted at the end."""
    if arguments.name:
        yield client.streams.get(arguments.name)
        return
    stream = client.streams.create(
        arguments.classes,
        horizon,
        method=arguments.method,
        parameters=dict(arguments.set) if arguments.set else None,
    )
    try:
        yield stream
    finally:
        if not arguments.keep:
            client.streams.delete(stream)


def _observe(
    client: Client, stream: ImageStream, batch: list[Path], taken: Taken, arguments: argparse.Namespace
) -> None:
    left, answers = taken.ask(
        batch, lambda some: client.streams.observe(stream, some, top=arguments.top) if some else [], fewest=0
    )
    for path, one in zip(left, answers, strict=True):
        if arguments.json:
            top = [{"label": label, "probability": probability} for label, probability in one.top]
            print(json.dumps({"image": str(path), "label": one.label, "confidence": one.confidence, "top": top}))
        else:
            print(f"{path}\t" + "\t".join(f"{label} {probability:.3f}" for label, probability in one.top))
    sys.stdout.flush()


def _report(stream: ImageStream, arguments: argparse.Namespace) -> None:
    """How large the groups are and how far they have moved; and, of a stream that stays, how to go on."""
    kept = stream.id if arguments.keep or arguments.name else None
    if arguments.json:
        groups = [{"label": group.label, "size": group.size, "drift": group.drift} for group in stream.groups]
        print(json.dumps({"stream": kept, "observed": stream.observed, "groups": groups}))
        return
    rows = [("label", "size", "drift")]
    rows += [
        (group.label, "-" if group.size is None else str(group.size), f"{group.drift:.3f}") for group in stream.groups
    ]
    print(f"\n{aligned(rows)}")
    if kept:
        print(f"{stream.observed} pictures observed; go on with --name {kept}")
