"""Questions about pictures, from a JSON Lines or Parquet file or a log, or the same ones about a folder's pictures."""

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from covervlm.clients.images import is_remote
from covervlm.server.cli.arguments import pictures
from covervlm.server.cli.errors import USAGE, CommandError, file_errors
from covervlm.server.cli.sample_logs import from_sample, is_sample
from covervlm.server.tuning.trial import Question


def read_questions(
    source: Path, asked: Sequence[str] | None, by: str | None, pictures_in: Path | None = None
) -> list[Question]:
    """The questions of a file whose rows have `image`, `question` and perhaps `answer`; paths start where it lies.

    asked: the questions about each picture, where `source` is a folder. by: the field that names the group.
    pictures_in: the folder of the pictures, where `source` is a log of lmms-eval.
    Raises CommandError for what is not like that.
    """
    if pictures_in is not None and not pictures_in.is_dir():
        raise CommandError(f"{pictures_in}: is no folder of pictures", USAGE)
    if source.is_dir():
        if not asked or by:
            raise CommandError("a folder takes --questions, and no --by", USAGE)
        return [Question(str(path), text) for path in pictures([source]) for text in asked]
    if asked:
        raise CommandError("--questions are for a folder of pictures; a file has its own", USAGE)
    match source.suffix.lower():
        case ".jsonl":
            rows = _json_lines(source)
        case ".parquet":
            rows = _parquet(source)
        case _:
            raise CommandError(f"{source}: questions are a .jsonl or .parquet file, or a folder of pictures", USAGE)
    found = []
    for place, row in rows:
        also: Sequence[str] = ()
        if is_sample(row):
            row, also = from_sample(place, row, pictures_in)
        found.append(replace(_question(place, row, source.parent, by), also=tuple(also)))
    if not found:
        raise CommandError(f"{source}: there are no questions", USAGE)
    return list(dict.fromkeys(found))


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with file_errors(path):
        data = path.read_bytes()
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                yield place, json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise CommandError(f"{place}: {error}", USAGE) from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise CommandError("Parquet needs pyarrow; get it with: pip install pyarrow, or use .jsonl", USAGE) from None
    try:
        with file_errors(path):
            rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise CommandError(f"{path}: {error}", USAGE) from None
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", row


def _question(place: str, row: Any, folder: Path, by: str | None) -> Question:
    if not isinstance(row, Mapping):
        raise CommandError(f"{place}: should be an object with `image` and `question`", USAGE)
    for name in ("image", "question"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise CommandError(f"{place}: `{name}` should be a text", USAGE)
    image, text, answer = row["image"], row["question"], row.get("answer")
    if isinstance(answer, Mapping | list):
        raise CommandError(f"{place}: `answer` should be a text or a number", USAGE)
    if by is not None and row.get(by) is None:
        raise CommandError(f"{place}: there is no `{by}`, which --by names", USAGE)
    where = image if is_remote(image) or image.startswith("data:") else str(folder / image)
    return Question(where, text, None if answer is None else str(answer), None if by is None else str(row[by]))
