"""Find how few vision tokens do on your own questions.

The unpruned model's answers are the reference. Where every question has a true answer, the loss is one of accuracy,
else the share of questions that are answered otherwise. Recommended is the smallest budget whose loss is below the
tolerance with 95 % confidence. QUESTIONS is a .jsonl or .parquet file with the fields image, question and perhaps
answer, or a folder of pictures. Answers are kept beside the report, so that the same command goes on where it was
ended, and settings for `covervlm serve --config`. Examples:

    covervlm tune questions.jsonl -o tuned.md
    covervlm tune photos/ --questions "What is this?" "Is it broken?" --budgets 64,128 -o tuned.md
    covervlm serve --config tuned.toml
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from covervlm.clients import Client
from covervlm.clients.jobs import progress_bar
from covervlm.server.cli.answers import Answers
from covervlm.server.cli.arguments import Taken, count, names
from covervlm.server.cli.connect import add_server_arguments, connect
from covervlm.server.cli.errors import USAGE, CommandError, file_errors
from covervlm.server.cli.questions import read_questions
from covervlm.server.tuning import report
from covervlm.server.tuning.search import Cell, Plan, recommended, search
from covervlm.server.tuning.trial import Given, Question, Trial

AT_ONCE = 8
"""Requests under way."""
BUDGETS = [16, 32, 64, 128, 192]


def _counts(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


def _points(text: str) -> float:
    """Points above 0 and below 100, as a share."""
    share = float(text) / 100
    if not 0 < share < 1:
        raise ValueError
    return share


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="QUESTIONS", help="a .jsonl or .parquet file, or a folder")
    parser.add_argument("--questions", nargs="+", metavar="TEXT", help="what to ask about each picture of a folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the report, a .md file")
    parser.add_argument("--methods", type=names, metavar="NAME,...", help="pruning methods (default: the server's)")
    parser.add_argument(
        "--budgets", type=_counts, default=BUDGETS, metavar="N,...", help="vision tokens (default: 16,32,64,128,192)"
    )
    parser.add_argument(
        "--tolerance", type=_points, default=0.02, metavar="POINTS", help="the loss that is tolerable (default: 2)"
    )
    parser.add_argument("--by", metavar="FIELD", help="tell the loss for each value of this field, too")
    parser.add_argument("--max-tokens", type=count, default=32, metavar="N", help="tokens of an answer (default: 32)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the order of the questions (default: 0)")
    add_server_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output
    if output.suffix.lower() != ".md":
        raise CommandError(f"{output}: the name of a report ends in .md", USAGE)
    questions = read_questions(arguments.source, arguments.questions, arguments.by)
    taken, start = Taken(), time.perf_counter()
    with connect(arguments) as client:
        common = {"model": client.models()[0].id, "max_tokens": arguments.max_tokens}
        answers = Answers(output.with_suffix(".answers.jsonl"), common)
        try:
            asker = _Asker(client, answers, taken)
            asker.ask([(question, None) for question in questions])
            trial = Trial([question for question in questions if answers.get(question, None)], answers.get)
            if not trial.questions:
                taken.end()
            plan = _plan(arguments, trial, client)
            standings = search(
                plan, lambda wanted: asker.ask([(trial.questions[n], cell) for n, cell in wanted]), trial.verdict
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
        finally:
            answers.close()
    best = recommended(standings, plan.tolerance)
    said = report.sentence(best, plan, "accuracy" if trial.judged else "agreement")
    rows = report.table([trial.row(standing) for standing in (None, *standings)])
    whole = len(trial.questions) * (1 + len(standings))
    used = len(trial.questions) + sum(len(one.numbers) for one in standings)
    cost = f"{used} answers, of {whole} for all questions in all cells; {asker.asked} of them asked for now, "
    cost += f"{AT_ONCE} at once, in {time.perf_counter() - start:.0f} seconds."
    told = [f"# Vision tokens for {arguments.source.name}", said, rows, cost]
    if arguments.by:
        shown = best or standings[0]
        told += [f"With {shown.cell.keep} vision tokens ({shown.cell.method}) by {arguments.by}:"]
        told += [report.group_table(trial.groups(shown))]
    _write(output, "\n\n".join(told) + "\n")
    _write(output.with_suffix(".toml"), report.settings(best, said))
    print("\n\n".join(told[1:]))
    taken.end()


def _plan(arguments: argparse.Namespace, trial: Trial, client: Client) -> Plan:
    """Which cells to ask: of the budgets, those that prune any picture at all."""
    methods = arguments.methods
    first = trial.questions[0]
    if methods is None:
        methods = [client.prune(first.image, first.text, keep_tokens=1).method]
    most = max(given.vision_tokens for question in trial.questions if (given := trial.get(question, None)))
    budgets = sorted({budget for budget in arguments.budgets if budget < most})
    if not budgets or not methods:
        raise CommandError(
            f"the pictures have {most} vision tokens at most; name a smaller budget, and a method", USAGE
        )
    pictures = [question.image for question in trial.questions]
    return Plan(pictures, list(dict.fromkeys(methods)), budgets, arguments.tolerance, arguments.seed)


def _write(path: Path, text: str) -> None:
    with file_errors(path):
        path.write_text(text, encoding="utf-8")


class _Asker:
    """Asks for the answers that are not there yet, and keeps them. asked: how many so far."""

    def __init__(self, client: Client, answers: Answers, taken: Taken) -> None:
        self._client, self._answers, self._taken = client, answers, taken
        self._options: dict[str, Any] = {**answers.common, "temperature": 0.0}
        self.asked = 0

    def ask(self, wanted: Sequence[tuple[Question, Cell | None]]) -> None:
        """Those that fail because of themselves are told in the end, and stay without an answer."""
        left = [one for one in wanted if self._answers.get(*one) is None]
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            under_way = {pool.submit(self._one, *one): one for one in left}
            with progress_bar() as move:
                for number, future in enumerate(as_completed(under_way)):
                    move(number / len(left), f"{number} of this round's {len(left)} answers")
                    question, cell = under_way[future]
                    with self._taken.unless(question.image):
                        self._answers.add(question, cell, future.result())
                        self.asked += 1
        finally:
            pool.shutdown(cancel_futures=True)

    def _one(self, question: Question, cell: Cell | None) -> Given:
        start = time.perf_counter()
        pruning: dict[str, Any] = {"method": cell.method, "keep_tokens": cell.keep} if cell else {"method": "none"}
        answer = self._client.chat(question.image, question.text, **pruning, **self._options)
        tokens = sum(image.total for image in answer.images)
        return Given(answer.text.strip(), answer.usage.prompt_tokens, tokens, time.perf_counter() - start)
