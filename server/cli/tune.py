"""Find how few vision tokens do on your own questions.

The unpruned model's answers are the reference. Where every question has a true answer, the loss is one of accuracy;
otherwise it is the share of questions that get another answer. The smallest budget whose loss is below the tolerance
with 95 % confidence is recommended. QUESTIONS is a .jsonl or .parquet file with the fields image, question and, if it
is known, answer; a log of lmms-eval's --log_samples; or a folder of pictures. Beside the report are written a plot,
settings for `covervlm serve --config`, and the answers, from which the same command goes on after it was stopped.
Examples:

    covervlm tune questions.jsonl -o tuned.md
    covervlm tune photos/ --questions "What is this?" "Is it broken?" --budgets 64,128 -o tuned.md
    covervlm serve --config tuned.toml
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from covervlm.clients import APIError, BadRequestError, Client
from covervlm.clients.jobs import progress_bar
from covervlm.server.cli.answers import Answers
from covervlm.server.cli.arguments import Taken, check_folder, count, names
from covervlm.server.cli.asking import ask, at_once, compared
from covervlm.server.cli.connect import add_server_arguments, connect
from covervlm.server.cli.errors import USAGE, CommandError, file_errors
from covervlm.server.cli.pace import Pace, pace
from covervlm.server.cli.questions import read_questions
from covervlm.server.tuning import report
from covervlm.server.tuning.plot import plot
from covervlm.server.tuning.search import Cell, Plan, recommended, search
from covervlm.server.tuning.trial import Given, Question, Trial

AT_ONCE = 8
"""Requests under way."""
BUDGETS = [16, 32, 64, 128, 192]


def _counts(text: str) -> list[int]:
    try:
        return [count(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no whole numbers above 0, separated by commas") from None


def _points(text: str) -> float:
    """Points above 0 and below 100, as a share."""
    try:
        share = float(text) / 100
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} are no points above 0 and below 100; none at all can be promised")
    return share


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="QUESTIONS", help="a .jsonl or .parquet file, or a folder")
    parser.add_argument("--questions", nargs="+", metavar="TEXT", help="what to ask about each picture of a folder")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="of a log of lmms-eval, called by doc_id")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the report, a .md file")
    parser.add_argument("--methods", type=names, metavar="NAME,...", help="pruning methods (default: the server's)")
    parser.add_argument(
        "--budgets", type=_counts, default=BUDGETS, metavar="N,...", help="vision tokens (default: 16,32,64,128,192)"
    )
    parser.add_argument(
        "--tolerance", type=_points, default=0.02, metavar="POINTS", help="the largest loss to accept (default: 2)"
    )
    parser.add_argument("--by", metavar="FIELD", help="also report the loss for each value of this field")
    parser.add_argument("--max-tokens", type=count, default=32, metavar="N", help="tokens of an answer (default: 32)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the order of the questions (default: 0)")
    add_server_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output
    if output.suffix.lower() != ".md":
        raise CommandError(f"{output}: the name of a report ends in .md", USAGE)
    check_folder(output)
    if "none" in (arguments.methods or ()):
        raise CommandError("--methods: none prunes nothing, and is asked anyway", USAGE)
    questions = read_questions(arguments.source, arguments.questions, arguments.by, arguments.pictures)
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
            best = recommended(standings, plan.tolerance)
            speed = None if best is None else _pace(client, answers, trial.questions, best.cell)
        except ValueError as error:
            raise CommandError(str(error)) from None
        except (APIError, KeyboardInterrupt):
            print(f"What was answered is in {answers.path}; the same command goes on from there.", file=sys.stderr)
            raise
        finally:
            answers.close()
    unpruned, *pruned = (trial.row(standing) for standing in (None, *standings))
    said = report.sentence(best, plan, report.measure(trial))
    told = [said, *report.passed_over(standings, best, plan), report.table([unpruned, *pruned])]
    told += report.remarks(trial, standings, unpruned)
    if best is not None:
        fewer = next(row.prompt_tokens for row in pruned if row.standing is best)
        told += [f"A prompt then has {fewer:.0f} instead of {unpruned.prompt_tokens:.0f} tokens on average."]
    if speed is not None:
        told += [f"{AT_ONCE} requests at once, the two in turn and without the vision tower: {speed}."]
    whole = len(trial.questions) * (1 + len(standings))
    used = len(trial.questions) + sum(len(one.numbers) for one in standings)
    told += [
        f"{used} answers were needed, where all questions in all cells take {whole}; {asker.asked} of them were asked "
        f"for in this run, {AT_ONCE} at once, in {time.perf_counter() - start:.0f} seconds."
    ]
    if arguments.by:
        shown = best or standings[0]
        told += [f"With {shown.cell.keep} vision tokens ({shown.cell.method}) by {arguments.by}:"]
        told += [report.group_table(trial.groups(shown))]
    drawn = output.with_suffix(".svg")
    _write(drawn, plot(standings, best, plan.tolerance))
    picture = f"![points lost by vision tokens kept]({drawn.name})"
    _write(output, "\n\n".join([f"# Vision tokens for {arguments.source.resolve().name}", *told, picture]) + "\n")
    _write(output.with_suffix(".toml"), report.settings(best, said))
    print("\n\n".join(told))
    taken.end()


def _pace(client: Client, answers: Answers, questions: Sequence[Question], cell: Cell) -> Pace | None:
    """None where the model takes no system message, which tells the timed requests apart."""
    try:
        return answers.pace(cell, lambda: pace(client, questions, cell, AT_ONCE, **answers.common))
    except BadRequestError:
        return None


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
        self.asked = 0

    def ask(self, wanted: Sequence[tuple[Question, Cell | None]]) -> None:
        """A question that fails because of itself gets no answer, and is listed at the end."""
        left = [one for one in wanted if self._answers.get(*one) is None]
        with progress_bar() as move:
            for number, (one, given) in enumerate(at_once(self._one, left, AT_ONCE)):
                move(number / len(left), f"{number} of this round's {len(left)} answers")
                question, cell = one
                with self._taken.unless(question.image):
                    self._answers.add(question, cell, given.result())
                    self.asked += 1

    def _one(self, asked: tuple[Question, Cell | None]) -> Given:
        question, cell = asked
        given = ask(self._client, question.image, question.text, cell, **self._answers.common)
        reference = self._answers.get(question, None)
        if cell is None or reference is None:
            return given
        model = self._answers.common["model"]
        return compared(self._client, question.image, question.text, cell, given, reference, model)
