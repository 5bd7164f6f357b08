"""Turn a folder of pictures into a table: a row for each, with a column for each property of a JSON schema.

The table is CSV or, by its name and with pyarrow, Parquet. Pictures that it already has are skipped, so that the same
command goes on after it was stopped. Texts are cells as they are, null is an empty one, and objects and lists are their
JSON; in CSV, an apostrophe comes before a text that a spreadsheet would compute, such as =1+1. Properties are required
where the schema does not say which are. Examples:

    covervlm extract photos/ --schema thing.json -o things.csv
    covervlm extract invoices/ --schema invoice.json --question "Read this invoice." --keep 256 -o invoices.parquet
"""

import argparse
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from covervlm.clients import Client, ResponseFormatError
from covervlm.clients.jobs import progress_bar
from covervlm.clients.schemas import closed
from covervlm.server.cli.arguments import Taken, add_budget, budget_of, count, pictures, schema_file
from covervlm.server.cli.connect import add_server_arguments, connect
from covervlm.server.cli.errors import USAGE, CommandError
from covervlm.server.cli.table import Table, open_table

AT_ONCE = 8
"""Requests under way."""
QUESTION = "What does the picture show? Answer in JSON that follows this schema: {schema}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="FOLDER", help="folders of pictures, or files")
    parser.add_argument("--schema", type=schema_file, required=True, metavar="FILE", help="a JSON schema of an object")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a .csv or .parquet file")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--question", help="(default: what the picture shows, with the schema)")
    asked.add_argument(
        "--one-by-one",
        action="store_true",
        help="ask for each property on its own, by its description: for models that know single questions only",
    )
    add_budget(parser, default="default: the server's own budget")
    parser.add_argument("--max-tokens", type=count, metavar="N", help="tokens of an answer (default: all that fit)")
    add_server_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    properties = arguments.schema.get("properties")
    if not properties or not isinstance(properties, dict):
        raise CommandError("the schema should have `properties`, which become the columns", USAGE)
    if "image" in properties:
        raise CommandError("the column `image` names the picture; call that property something else", USAGE)
    paths = list(dict.fromkeys(pictures(arguments.images)))
    table = open_table(arguments.output, ["image", *properties])
    taken = Taken()
    try:
        if left := [path for path in paths if str(path) not in table.names]:
            with connect(arguments) as client:
                _fill(table, left, _row_maker(client, arguments), taken)
    finally:
        table.close()
    taken.end()


def _row_maker(client: Client, arguments: argparse.Namespace) -> Callable[[Path], list[Any]]:
    """What makes a picture's row."""
    options = budget_of(arguments) | {"max_tokens": arguments.max_tokens, "temperature": 0.0}
    options["model"] = client.models()[0].id
    whole = closed({"type": "object", "required": list(arguments.schema["properties"]), **arguments.schema})
    if arguments.one_by_one:
        return partial(_row_one_by_one, client, whole, options)
    return partial(_row, client, whole, arguments.question, options)


def _row(
    client: Client, schema: Mapping[str, Any], question: str | None, options: dict[str, Any], path: Path
) -> list[Any]:
    """All properties from one answer."""
    asked = question or QUESTION.format(schema=json.dumps(schema, ensure_ascii=False))
    answer = client.chat(path, asked, schema=schema, **options).parsed
    return [str(path), *(answer.get(name) for name in schema["properties"])]


def _row_one_by_one(client: Client, schema: Mapping[str, Any], options: dict[str, Any], path: Path) -> list[Any]:
    """Each property from an answer of its own; an enum of words is asked for as a word, not as JSON."""
    row: list[Any] = [str(path)]
    for name, part in schema["properties"].items():
        said = part if isinstance(part, dict) else {}  # true is a schema, too
        asked = said.get("description") or f"What is the {name}?"
        words = said.get("enum", [])
        if words and all(isinstance(word, str) for word in words):
            # Chat templates leave a space before the first word, which many vocabularies have as a part of it.
            form = {"structured_outputs": {"choice": [*words, *(f" {word}" for word in words)]}}
            word = client.chat(path, asked, extra_body=form, **options).text.strip()
            if word not in words:
                raise ResponseFormatError(f"The answer {word!r} was cut off before its end; allow it more tokens.")
            row.append(word)
        else:
            alone = {**schema, "properties": {name: part}, "required": [name]}
            row.append(client.chat(path, asked, schema=alone, **options).parsed[name])
    return row


def _fill(table: Table, paths: list[Path], row: Callable[[Path], list[Any]], taken: Taken) -> None:
    """Adds the pictures' rows as they come."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        under_way = {pool.submit(row, path): path for path in paths}
        with progress_bar() as move:
            for number, future in enumerate(as_completed(under_way)):
                move(number / len(paths), f"{number} of {len(paths)} pictures")
                with taken.unless(under_way[future]):
                    table.add(future.result())
    finally:
        pool.shutdown(cancel_futures=True)
