"""What was found out, as a Markdown table, a sentence, a report and a file of settings."""

from collections.abc import Sequence

from covervlm.server.tuning.intervals import Estimate, questions_needed
from covervlm.server.tuning.search import Plan, Standing
from covervlm.server.tuning.trial import LONG, GroupRow, Row, Trial


def table(rows: Sequence[Row]) -> str:
    """A line for each cell; shares in percent with their 95 % intervals, losses in points."""
    judged = any(row.accuracy for row in rows)
    head = ["method", "vision tokens", "questions", "agreement %", "tokens %", *(["accuracy %"] if judged else [])]
    lines = [[*head, "loss", "loss below", "prompt tokens", "ms"]]
    for row in rows:
        one = row.standing
        name = [one.cell.method, str(one.cell.keep)] if one else ["none", "all"]
        shares = [_share(row.agreement), _share(row.tokens), *([_share(row.accuracy)] if row.accuracy else [])]
        loss = [_points(one.loss.value), _points(one.loss.high)] if one else ["", ""]
        questions = f"{row.questions}" if one is None or one.finished else f"{row.questions}, stopped"
        lines.append([*name, questions, *shares, *loss, f"{row.prompt_tokens:.0f}", f"{row.seconds * 1000:.0f}"])
    return _markdown(lines)


def group_table(rows: Sequence[GroupRow]) -> str:
    lines = [["questions", "number", "loss", "loss below"]]
    lines += [[row.group, str(row.questions), _points(row.loss.value), _points(row.loss.high)] for row in rows]
    return _markdown(lines)


def sentence(best: Standing | None, plan: Plan, measure: str) -> str:
    """The recommendation. measure: what is lost, accuracy or agreement."""
    if best is not None:
        turn = "gained" if best.loss.value < 0 else "lost"
        seen = f"{_points(abs(best.loss.value))} points of {measure} are {turn} on these questions"
        sure = f"with 95 % confidence fewer than {_points(best.loss.high)} are lost"
        return f"Keep {best.cell.keep} vision tokens with {best.cell.method}: {seen}; {sure}."
    said = f"No budget loses fewer than {plan.tolerance * 100:g} points of {measure} with 95 % confidence."
    needed = questions_needed(plan.tolerance, risk=plan.risk)
    if needed > len(plan.pictures):
        there = "is 1" if len(plan.pictures) == 1 else f"are {len(plan.pictures)}"
        said += f" Even one that loses nothing would need {needed} questions; there {there}."
    return said


def passed_over(standings: Sequence[Standing], best: Standing | None, plan: Plan) -> list[str]:
    """Why smaller budgets are not recommended whose bounds in the table are below the tolerance; empty without any."""
    fine = [one.cell for one in standings if one.finished and one.loss.high < plan.tolerance]
    cells = ", ".join(f"{cell.method} with {cell.keep}" for cell in fine if best is None or cell.keep < best.cell.keep)
    if not cells:
        return []
    return [
        "The table has losses below the tolerance that count for nothing, since that of a larger budget of the same "
        f"method is not below it: {cells}."
    ]


def measure(trial: Trial) -> str:
    """What is lost."""
    if not trial.judged or trial.long == len(trial.questions):
        return "agreement"
    return "accuracy (of long answers: agreement)" if trial.long else "accuracy"


def remarks(trial: Trial, standings: Sequence[Standing], unpruned: Row) -> list[str]:
    """What a reader must know of how answers were compared."""
    said = []
    if trial.long:
        said += [
            f"{trial.long} of {len(trial.questions)} unpruned answers have more than {LONG} tokens: of these, the loss "
            "is the share of tokens that the pruned model would not have written in their places."
        ]
    if unread := trial.unread(standings):
        said += [
            f"The server did not tell which tokens are the likeliest in {unread} unpruned answers for the pruned "
            "model. Of these, only the words before the first that differs count as agreeing: too few, if anything."
        ]
    if unpruned.accuracy is not None and not unpruned.accuracy.value and not trial.long:
        said += ["The unpruned model has no question right, so that there is no accuracy to lose: go by agreement."]
    return said


def settings(best: Standing | None, said: str) -> str:
    """A TOML file for `covervlm serve --config`; without a recommendation, it sets nothing."""
    lines = [f"# {said}"]
    if best is not None:
        lines += [f'method = "{best.cell.method}"', f"keep_tokens = {best.cell.keep}"]
    return "\n".join(lines) + "\n"


def _share(share: Estimate) -> str:
    return f"{share.value * 100:.1f} ({share.low * 100:.1f} to {share.high * 100:.1f})"


def _points(loss: float) -> str:
    return f"{loss * 100:.1f}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
    return "\n".join([head, "| --- " * len(lines[0]) + "|", *rest])
