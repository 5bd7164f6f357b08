"""Accuracy of the model against the vision tokens it keeps, for every pruning method.

    python benchmarks/quality.py                                  everything in this process: docs/quality.md and .png
    python benchmarks/quality.py --url http://127.0.0.1:8000      the same questions through a running server
    python benchmarks/quality.py --url ... --check-generate       do its unpruned answers equal transformers' generate?

Results of single questions are kept in a JSON-lines file, so a rerun only asks what is missing; delete the file, or
name another one, after a change to the code that is measured. The question sets are fixed, and no training or tuning
has seen them (benchmarks/demo_model/splits.py); use `--split tuning` to try something out.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from evaluation.in_process import InProcess
from evaluation.over_http import OverHTTP
from evaluation.question_sets import DEFAULT_KINDS, SETS, SPLITS, Item, question_set
from evaluation.records import UNPRUNED, Cell, Records
from evaluation.reference import Reference
from evaluation.report import SetResults, write_markdown, write_plot
from evaluation.variants import NOTES, UNSERVED, measured_names
from tqdm import tqdm

from covervlm.server.demo import model_path

Wanted = list[tuple[Item, list[Cell]]]


def missing(items: Sequence[Item], cells: Sequence[Cell], records: Records) -> Wanted:
    """What is still to be asked, questions about one scene next to each other."""
    in_order = sorted(items, key=lambda item: (item.set, item.seed))
    wanted = [(item, [cell for cell in cells if (item.key, cell) not in records]) for item in in_order]
    return [(item, open_cells) for item, open_cells in wanted if open_cells]


def answer(asker: InProcess | OverHTTP, wanted: Wanted, records: Records) -> None:
    """Ask, and keep every answer as soon as it is there."""
    with tqdm(total=sum(len(cells) for _, cells in wanted), unit="answer", smoothing=0.01) as bar:
        for answered in asker.ask(wanted):
            records.add(*answered)
            bar.update()


def check_generate(asker: OverHTTP, reference: Reference, items: Sequence[Item], total: int) -> int:
    """Ask the server and transformers' own generate the same unpruned questions; returns how many answers differ."""
    unpruned = [(item, [Cell(UNPRUNED, total)]) for item in items]
    asked = tqdm(asker.ask(unpruned), total=len(items), desc="server", unit="answer")
    served = {key: text for key, _, _, text in asked}
    differing = 0
    right = 0
    for item in tqdm(items, desc="generate", unit="answer"):
        expected = reference.answer(item)
        right += expected == item.answer
        if served[item.key] != expected:
            differing += 1
            tqdm.write(f"{item.key}: {item.question} server {served[item.key]!r}, generate {expected!r}")
    same = len(items) - differing
    print(f"{same} of {len(items)} unpruned answers over HTTP equal transformers' generate ({right} are right)")
    return differing


def fingerprint(model: Path) -> str:
    """Name and weights of a checkpoint, so that results of two models never mix."""
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return f"{model.name}@{digest.hexdigest()[:12]}"


def vision_tokens(model: Path) -> int:
    """Vision tokens of an unpruned image."""
    vision = json.loads((model / "config.json").read_text(encoding="utf-8"))["vision_config"]
    return (vision["image_size"] // vision["patch_size"]) ** 2


def header(arguments: argparse.Namespace, records: Records, asked: int, answers: int, seconds: float) -> str:
    """Title, command, what was measured with what. `asked` of the `answers` were asked in this run."""
    effort = f"All {answers} answers took {seconds / 60:.0f} minutes." if asked == answers else ""
    how = "through the HTTP API" if arguments.url else "in process"
    sets = " and ".join(f"{name} scenes" for name in arguments.sets)
    return "\n\n".join(
        [
            "# Accuracy against vision tokens kept",
            f"Written by\n\n    python {shlex.join(sys.argv)}",
            f"Model `{records.model}`, asked {how}; exact match of the greedy answer; {arguments.questions} questions "
            f"a cell and set ({', '.join(arguments.kinds)} in equal numbers) about {sets} of the {arguments.split} "
            "split, at most one of each kind about a scene. "
            f"torch {torch.__version__}, transformers {transformers.__version__}, one thread. {effort}",
            "In brackets are 95 % intervals that count questions about one scene together: Wilson's of shares, and of "
            "ratios a percentile bootstrap, 2,000 resamples of whole scenes. The model is a toy "
            "on drawn scenes, which favour methods that cover an image; the ranking says something about the methods, "
            "but the size of the gaps says nothing about a 7B model on photographs.",
            NOTES,
            f"![Accuracy against vision tokens kept]({arguments.out.with_suffix('.png').name})",
        ]
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="ask the server at this address instead of running the model in this process")
    parser.add_argument("--check-generate", action="store_true", help="compare a server's answers with transformers'")
    parser.add_argument("--model", type=Path, default=model_path(), help="checkpoint folder, the demo model by default")
    parser.add_argument("--quantization", choices=["none", "int8"], default="none", help="of the model in this process")
    parser.add_argument("--served-model", help="model name to send with --url; the first one listed by default")
    parser.add_argument("--api-key", default="none", help="sent with --url")
    parser.add_argument("--concurrency", type=int, default=16, help="questions under way at once with --url")
    parser.add_argument("--methods", nargs="+", choices=measured_names(), help="all by default")
    parser.add_argument("--budgets", type=int, nargs="+", default=[192, 128, 64, 32, 16, 8, 4])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--questions", type=int, default=600, help="per cell and set")
    parser.add_argument("--kinds", nargs="+", default=list(DEFAULT_KINDS))
    parser.add_argument("--split", choices=list(SPLITS), default="evaluation")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/quality.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("docs/quality"), help=".md and .png are written")
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()
    torch.set_num_threads(1)
    started = time.time()
    methods = [method for method in arguments.methods or measured_names() if method != UNPRUNED]
    if arguments.url:
        methods = [method for method in methods if method not in UNSERVED]
    sets = {
        name: question_set(name, arguments.questions, arguments.kinds, split=arguments.split) for name in arguments.sets
    }
    total = vision_tokens(arguments.model)
    cells = [Cell(UNPRUNED, total)]
    cells += [Cell(method, k) for method in methods for k in arguments.budgets if k < total]
    http = (
        OverHTTP(arguments.url, arguments.served_model, arguments.api_key, arguments.concurrency)
        if arguments.url
        else None
    )
    if arguments.check_generate:
        if http is None:
            raise SystemExit("--check-generate needs --url")
        items = [item for items in sets.values() for item in items]
        return 1 if check_generate(http, Reference(arguments.model), items, total) else 0
    way = "http" if http else "in-process" + ("" if arguments.quantization == "none" else f", {arguments.quantization}")
    records = Records(arguments.results, fingerprint(arguments.model), way)
    wanted = [entry for items in sets.values() for entry in missing(items, cells, records)]
    asked = sum(len(open_cells) for _, open_cells in wanted)
    answers = len(cells) * sum(map(len, sets.values()))
    if wanted:
        answer(http or InProcess(arguments.model, methods, arguments.quantization), wanted, records)
    spent = time.time() - started
    results = [SetResults.of(name, items, cells, records, total) for name, items in sets.items()]
    write_markdown(arguments.out.with_suffix(".md"), header(arguments, records, asked, answers, spent), results)
    write_plot(arguments.out.with_suffix(".png"), results)
    print(arguments.out.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
