"""Train a classifier or a space for search, and tell what it is worth on pictures that it has not learned from.

Examples:

    covervlm train birds photos/ --out birds.safetensors     (photos/wren/1.jpg, photos/robin/2.jpg, ...)
    covervlm train birds labels.csv --method sea --url http://127.0.0.1:8000     (path,label or path,label,group)
    covervlm train birds labels.parquet --embeddings birds.npy --url http://127.0.0.1:8000
    covervlm train products photos/ --projection soft_triple --url http://127.0.0.1:8000
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from covervlm.clients import Client
from covervlm.clients.tables import Labels, read_table
from covervlm.server.cli.arguments import Taken, add_parameters, check_folder, parameter, pictures
from covervlm.server.cli.columns import aligned
from covervlm.server.cli.connect import add_server_arguments, connect, finished
from covervlm.server.cli.errors import USAGE, CommandError, file_errors
from covervlm.server.clip.methods.registry import method_names


class Labelled(NamedTuple):
    path: Path
    label: str
    group: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the classifier; training again makes its next version")
    parser.add_argument(
        "examples",
        type=Path,
        metavar="PLACE",
        help="a folder with a folder for each label, or a .csv or .parquet file with the columns path,label[,group]",
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help="learn from this .npy or .safetensors file; the table has label[,group][,id] of its rows in their order",
    )
    methods = [*method_names("choose"), *method_names("train")]
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--method", choices=methods, help=f"(default: {methods[0]}, the best of several)")
    kind.add_argument(
        "--projection", choices=method_names("project"), help="learn a space for search instead, by this method"
    )
    add_parameters(parser)
    parser.add_argument(
        "--prior", nargs="*", action="extend", type=parameter, metavar="LABEL=SHARE", help="how often labels will come"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the hold-out and of what is random in learning")
    parser.add_argument(
        "--keep-examples", action="store_true", help="keep the pictures' embeddings and paths, for `covervlm explain`"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="also write the classifier to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_server_arguments(parser, clip=True)


def run(arguments: argparse.Namespace) -> None:
    check_folder(arguments.out)
    if arguments.projection and (arguments.out or arguments.prior or arguments.keep_examples):
        raise CommandError("--out, --prior and --keep-examples are for classifiers", USAGE)
    kind = "projection" if arguments.projection else "classifier"
    taken = Taken()
    examples = {} if arguments.embeddings else {one.path: one for one in labelled(arguments.examples)}
    with connect(arguments) as client:
        if arguments.embeddings:
            name = _train_on_file(client, arguments)
        else:
            _, name = taken.ask(
                list(examples), lambda some: _train(client, [examples[path] for path in some], arguments), fewest=2
            )
        report = (client.projections if arguments.projection else client.classifiers).get(name).report
        if arguments.out is not None:
            with file_errors(arguments.out):
                arguments.out.write_bytes(client.classifiers.download(name))
    if arguments.json:
        print(json.dumps({kind: name, "report": report}))
    else:
        if report["held_out"]:
            print(f"{name}: {report['held_out']} pictures judged that it had not learned from")
            print(recall_table(arguments.projection, report) if arguments.projection else table(report))
        else:
            print(name)  # a warning says why nothing was judged
        for warning in report["warnings"]:
            print(warning, file=sys.stderr)
    taken.end()


def labelled(place: Path) -> list[Labelled]:
    """The pictures of a folder, labelled by the folders in it, or those of a table, whose paths begin where it lies.

    Raises CommandError.
    """
    if place.is_dir():
        found = [Labelled(path, path.relative_to(place).parts[0]) for path in pictures([place]) if path.parent != place]
        if not found:
            raise CommandError(f"{place} holds no folders of pictures; make one for each label", USAGE)
        return found
    with file_errors(place), usage_errors():
        columns = read_table(place)
    if not {"path", "label"} <= set(columns):
        raise CommandError(f"{place}: the first line must name the columns: path,label or path,label,group", USAGE)
    groups: Sequence[str | None] = columns.get("group") or [None] * len(columns["path"])
    found = [
        Labelled(place.parent / path, label, group)
        for path, label, group in zip(columns["path"], columns["label"], groups, strict=True)
    ]
    if not found:
        raise CommandError(f"{place} names no pictures; write a line for each below the first", USAGE)
    return found


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turns a ValueError into a CommandError."""
    try:
        yield
    except ValueError as error:
        raise CommandError(str(error), USAGE) from None


def _train(client: Client, examples: list[Labelled], arguments: argparse.Namespace) -> str:
    groups = [one.group for one in examples if one.group is not None]
    paths = [one.path for one in examples]
    columns = {"groups": groups} if groups and not arguments.projection else {}
    labels = [one.label for one in examples]
    return _learned(client, arguments, labels, images=paths, ids=[str(path) for path in paths], **columns)


def _train_on_file(client: Client, arguments: argparse.Namespace) -> str:
    with file_errors(arguments.embeddings):
        upload = client.classifiers.upload_embeddings(arguments.embeddings)
    with file_errors(arguments.examples), usage_errors():
        return _learned(client, arguments, arguments.examples, uploads=[upload])


def _learned(client: Client, arguments: argparse.Namespace, labels: Labels, **given: Any) -> str:
    """The name of what a job learned."""
    given |= {"parameters": dict(arguments.set) if arguments.set else None, "seed": arguments.seed}
    if arguments.projection:
        job = client.projections.train(arguments.name, labels, method=arguments.projection, **given)
    else:
        job = client.classifiers.train(
            arguments.name,
            labels,
            method=arguments.method,
            prior=dict(arguments.prior) if arguments.prior else None,
            keep_examples=arguments.keep_examples,
            **given,
        )
    return finished(client, job)


def table(report: Mapping[str, Any]) -> str:
    """Every method that was judged, the best one first."""
    rows = [("method", "accuracy", "95 % interval", "class mean", "worst")]
    for one in sorted(report["compared"], key=lambda one: -one["class_mean"]):
        method = " ".join([one["method"], *(f"{name}={value}" for name, value in one["parameters"].items())])
        low, high = one["accuracy"]["interval"]
        worst = f"{one['worst_group']['value']:.3f} ({one['worst_group']['name']})"
        accuracy = f"{one['accuracy']['value']:.3f}"
        rows.append((method, accuracy, f"{low:.3f} to {high:.3f}", f"{one['class_mean']:.3f}", worst))
    return aligned(rows)


def recall_table(method: str, report: Mapping[str, Any]) -> str:
    """How often one of the nearest 1, 2, 4 or 8 pictures has the same label, with the projection and without."""
    rows: list[tuple[str, ...]] = [("space", "R@1", "95 % interval", "R@2", "R@4", "R@8", "NMI")]
    for name, one in ((method, report), ("unprojected", report["unprojected"])):
        recall = {count: found["value"] for count, found in one["recall"].items()}
        low, high = one["recall"]["1"]["interval"]
        others = (f"{recall[count]:.3f}" for count in ("2", "4", "8"))
        rows.append((name, f"{recall['1']:.3f}", f"{low:.3f} to {high:.3f}", *others, f"{one['nmi']:.3f}"))
    return aligned(rows)
