"""Questions from the per-sample logs of lmms-eval (`--log_samples`): a row for each sample, without its picture.

What versions write, by their sources: from 0.3 on `doc_id`, `input` (the prompt's text), `target` and
`filtered_resps`; 0.3 also `doc`; newer ones `input_media`, the addresses of pictures, if the data set has addresses.
"""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covervlm.server.cli.arguments import SUFFIXES
from covervlm.server.cli.errors import USAGE, CommandError


def is_sample(row: Any) -> bool:
    """Whether it is such a row, and not a question of our own form."""
    return isinstance(row, Mapping) and "doc_id" in row and "input" in row and "question" not in row


def from_sample(place: str, row: Mapping[str, Any], pictures: Path | None) -> tuple[Mapping[str, Any], Sequence[str]]:
    """The sample as a row with `image`, `question` and, if one is known, `answer`; and other answers that are as true.

    pictures: the folder of the pictures, which are called by `doc_id`, or as the log calls them.
    Raises CommandError where there is no single picture.
    """
    documented = row["doc"] if isinstance(row.get("doc"), Mapping) else {}
    answer, *also = _true_answers(row) or (None,)
    fields = {"image": _picture(place, row, pictures), "question": row["input"], "answer": answer}
    return {**documented, **row, **fields}, [text for text in also if text is not None]


def _picture(place: str, row: Mapping[str, Any], pictures: Path | None) -> Any:
    name, named = str(row["doc_id"]), row.get("input_media") or []
    if len(named) > 1:
        raise CommandError(f"{place}: has {len(named)} pictures; only questions about one are asked", USAGE)
    if pictures is not None:
        for suffix in sorted(SUFFIXES):
            if (path := pictures / (name + suffix)).is_file():
                return str(path.resolve())
    if named:
        if pictures is None or named[0].startswith(("http://", "https://", "data:")):
            return named[0].removeprefix("file://")
        return str(pictures.resolve() / named[0])
    if pictures is None:
        raise CommandError(f"{place}: names no picture; give --pictures FOLDER, with {name}.png for this one", USAGE)
    raise CommandError(f"{place}: there is no {pictures / name}.png (or .jpg, ...)", USAGE)


def _true_answers(row: Mapping[str, Any]) -> Sequence[str]:
    """Empty where none is known, and for choices by likelihood, whose target is a number and whose answer no text."""
    answered, target = row.get("filtered_resps"), row.get("target")
    if not isinstance(target, str) or target.strip() in ("", "None"):
        return ()
    if not isinstance(answered, str) and not (
        isinstance(answered, list) and all(isinstance(text, str) for text in answered)
    ):
        return ()
    if target.startswith("["):
        try:
            several = ast.literal_eval(target)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return (target,)
        return [str(one) for one in several if isinstance(one, str | int | float) and str(one).strip()]
    return (target,)
