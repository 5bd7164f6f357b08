"""Questions with the answers that were given to them, and what these show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from covervlm.server.tuning.comparison import compare
from covervlm.server.tuning.intervals import Estimate, design_effect, loss_interval, share_interval
from covervlm.server.tuning.search import Cell, Standing


@dataclass(frozen=True)
class Question:
    """image: a path or an http(s) URL. answer: the true one, if it is known. group: what kind of question it is."""

    image: str
    text: str
    answer: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Given:
    """An answer, and what it cost. vision_tokens: of the picture, before any pruning. seconds: until it was there."""

    text: str
    prompt_tokens: int
    vision_tokens: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """What one cell's answers show. standing: None for the unpruned model. accuracy: None without true answers.

    prompt_tokens, seconds: the mean of an answer.
    """

    standing: Standing | None
    questions: int
    agreement: Estimate
    accuracy: Estimate | None
    prompt_tokens: float
    seconds: float


@dataclass(frozen=True)
class GroupRow:
    """What one cell's answers to one group of questions show."""

    group: str
    questions: int
    loss: Estimate


@dataclass(frozen=True)
class Trial:
    """get: the answer of a cell, or of the unpruned model (None), to a question, if there is one. All questions have
    one of the unpruned model.
    """

    questions: Sequence[Question]
    get: Callable[[Question, Cell | None], Given | None]

    @property
    def judged(self) -> bool:
        """Whether every question has a true answer, so that the loss is one of accuracy."""
        return all(question.answer is not None for question in self.questions)

    def verdict(self, number: int, cell: Cell) -> tuple[bool, bool] | None:
        """Whether the unpruned model and the cell are right; without true answers, the unpruned model's is right."""
        question = self.questions[number]
        reference, given = self.get(question, None), self.get(question, cell)
        if reference is None or given is None:
            return None
        truth = reference.text if not self.judged or question.answer is None else question.answer
        return same(reference.text, truth), same(given.text, truth)

    def row(self, standing: Standing | None) -> Row:
        cell = standing.cell if standing else None
        numbers = standing.numbers if standing else range(len(self.questions))
        questions = [self.questions[number] for number in numbers]
        pictures = [question.image for question in questions]
        given, reference = ([_certain(self.get(one, which)) for one in questions] for which in (cell, None))
        agrees = [same(one.text, other.text) for one, other in zip(given, reference, strict=True)]
        right = [same(one.text, question.answer or "") for one, question in zip(given, questions, strict=True)]
        accuracy = share_interval(right, pictures) if self.judged else None
        tokens = sum(one.prompt_tokens for one in given) / len(given)
        seconds = sum(one.seconds for one in given) / len(given)
        return Row(standing, len(given), share_interval(agrees, pictures), accuracy, tokens, seconds)

    def groups(self, standing: Standing) -> list[GroupRow]:
        """The loss within each group, sorted by the group's name; empty where questions have no groups."""
        rows = []
        for group in sorted({question.group for question in self.questions if question.group is not None}):
            numbers = [number for number in standing.numbers if self.questions[number].group == group]
            judged = [(number, pair) for number in numbers if (pair := self.verdict(number, standing.cell))]
            if not judged:
                continue
            losses = [first - second for _, (first, second) in judged]
            effect = design_effect([losses], [[self.questions[number].image for number, _ in judged]])
            compared = compare([first for _, (first, _) in judged], [second for _, (_, second) in judged])
            rows.append(GroupRow(group, len(judged), loss_interval(compared, design_effect=effect)))
        return rows


def same(text: str, other: str) -> bool:
    """Whether two answers have the same words, whatever their case and white space."""
    return text.casefold().split() == other.casefold().split()


def _certain(given: Given | None) -> Given:
    assert given is not None, "only questions with an answer are compared"
    return given
