"""Questions with the answers that were given to them, and what these show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from covervlm.server.tuning.comparison import paired
from covervlm.server.tuning.intervals import Estimate, design_effect, loss_interval, share_interval, token_interval
from covervlm.server.tuning.search import Cell, Standing

LONG = 8
"""An answer of more tokens, the one that ends it included, is compared token by token, and others as a whole."""


@dataclass(frozen=True)
class Question:
    """image: a path or an http(s) URL. answer: the true one, if it is known. group: what kind of question it is.

    also: other answers that are as true.
    """

    image: str
    text: str
    answer: str | None = None
    group: str | None = None
    also: tuple[str, ...] = ()

    def right(self, text: str) -> bool:
        """Whether this is a true answer. Only to be asked where one is known."""
        return any(same(text, true) for true in (self.answer or "", *self.also))


@dataclass(frozen=True)
class Given:
    """An answer, and what it cost. vision_tokens: of the picture, before any pruning. seconds: until it was whole.

    tokens: of the answer, the one that ends it included where it was not cut off (ended). compared: of a pruned answer,
    how many tokens of the unpruned one it was compared with, and agreeing how many of them the pruned model would have
    written in their places. forced: whether it has read that answer (teacher forcing); otherwise these count words, and
    only those before the first that differs agree.
    """

    text: str
    prompt_tokens: int
    vision_tokens: int
    seconds: float
    tokens: int = 1
    ended: bool = True
    compared: int = 0
    agreeing: int = 0
    forced: bool = True


@dataclass(frozen=True)
class Row:
    """What one cell's answers show. standing: None for the unpruned model. accuracy: None without true answers.

    tokens: the share of the unpruned answers' tokens that agree. prompt_tokens, seconds: means over the answers.
    """

    standing: Standing | None
    questions: int
    agreement: Estimate
    tokens: Estimate
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
    """Questions, all answered by the unpruned model. get: the answer of a cell, or of that model (None), if any."""

    questions: Sequence[Question]
    get: Callable[[Question, Cell | None], Given | None]

    @property
    def judged(self) -> bool:
        """Whether every question has a true answer, so that the loss is one of accuracy."""
        return all(question.answer is not None for question in self.questions)

    @property
    def long(self) -> int:
        """How many unpruned answers are long."""
        return sum(_certain(self.get(question, None)).tokens > LONG for question in self.questions)

    def verdict(self, number: int, cell: Cell) -> tuple[float, float] | None:
        """How much the unpruned model and the cell have right.

        Without true answers, and of a long answer, the unpruned model's is right, a long one token by token: hardly a
        long answer is word for word the true one, so that none would be lost.
        """
        question = self.questions[number]
        reference, given = self.get(question, None), self.get(question, cell)
        if reference is None or given is None:
            return None
        if reference.tokens > LONG:
            agreeing, compared = _tokens(reference, given)
            return 1, agreeing / compared
        if self.judged:
            return question.right(reference.text), question.right(given.text)
        return True, same(given.text, reference.text)

    def row(self, standing: Standing | None) -> Row:
        cell = standing.cell if standing else None
        numbers = standing.numbers if standing else range(len(self.questions))
        questions = [self.questions[number] for number in numbers]
        pictures = [question.image for question in questions]
        given, reference = ([_certain(self.get(one, which)) for one in questions] for which in (cell, None))
        agrees = [same(one.text, other.text) for one, other in zip(given, reference, strict=True)]
        tokens = [_tokens(other, one) for one, other in zip(given, reference, strict=True)]
        right = [question.right(one.text) for one, question in zip(given, questions, strict=True)]
        return Row(
            standing,
            len(given),
            share_interval(agrees, pictures),
            token_interval([agreeing for agreeing, _ in tokens], [compared for _, compared in tokens], pictures),
            share_interval(right, pictures) if self.judged else None,
            sum(one.prompt_tokens for one in given) / len(given),
            sum(one.seconds for one in given) / len(given),
        )

    def unread(self, standings: Sequence[Standing]) -> int:
        """How many pruned answers could only be compared by their words."""
        asked = [(self.questions[number], one.cell) for one in standings for number in one.numbers]
        return sum(not _certain(self.get(*each)).forced for each in asked)

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
            both = paired([first for _, (first, _) in judged], [second for _, (_, second) in judged])
            rows.append(GroupRow(group, len(judged), loss_interval(both, design_effect=effect)))
        return rows


def same(text: str, other: str) -> bool:
    """Whether two answers have the same words, whatever their case and white space."""
    return text.casefold().split() == other.casefold().split()


def _tokens(reference: Given, given: Given) -> tuple[int, int]:
    """How many of the unpruned answer's tokens agree, of how many; all of them for the unpruned answer itself."""
    if given is reference:
        return reference.tokens, reference.tokens
    return (given.agreeing, given.compared) if given.compared else (same(given.text, reference.text), 1)


def _certain(given: Given | None) -> Given:
    assert given is not None, "only questions with an answer are compared"
    return given
