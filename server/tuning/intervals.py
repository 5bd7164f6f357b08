"""How sure a share of right answers is, and a loss between two answers to the same questions."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import floor, sqrt
from statistics import NormalDist

from covervlm.server.tuning.comparison import Pair

RISK = 0.05
"""How often a bound may be wrong."""


@dataclass(frozen=True)
class Estimate:
    """A value with its bounds."""

    value: float
    low: float
    high: float


def share_interval(right: Sequence[bool], pictures: Sequence[Hashable]) -> Estimate:
    """The share of right answers with Wilson's 95 % interval, for as many independent questions as they are worth.

    pictures: what each question is about.
    """
    return _wilson(sum(right) / len(right), len(right) / design_effect([right], [pictures]))


def token_interval(agreeing: Sequence[int], tokens: Sequence[int], pictures: Sequence[Hashable]) -> Estimate:
    """The share of all answers' tokens that agree, with Wilson's 95 % interval.

    Tokens of one answer, and those of answers about one picture, agree or differ together: they count as many
    independent ones as give the variance of the ratio over whole pictures, and no more than there are answers if none
    differ. agreeing, tokens: of each answer.
    """
    share, pairs = sum(agreeing) / sum(tokens), zip(agreeing, tokens, pictures, strict=True)
    off: defaultdict[Hashable, float] = defaultdict(float)
    for right, whole, picture in pairs:
        off[picture] += right - share * whole
    variance = sum(value**2 for value in off.values()) / sum(tokens) ** 2
    most = sum(tokens) if variance else len(tokens)
    return _wilson(share, min(most, share * (1 - share) / variance) if variance else most)


def _wilson(share: float, questions: float) -> Estimate:
    square = NormalDist().inv_cdf(1 - RISK / 2) ** 2
    middle = share + square / (2 * questions)
    half = sqrt(square * (share * (1 - share) + square / (4 * questions)) / questions)
    whole = 1 + square / questions
    return Estimate(share, max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole))


def loss_interval(pair: Pair, *, risk: float = RISK, design_effect: float = 1.0) -> Estimate:
    """How much less often the second is right than the first, with two bounds, each of which is wrong at rate `risk`.

    Tango's score bounds for paired shares (Statistics in Medicine 17, 1998), with half a question of continuity
    correction: without it, they are wrong more often than they say where few questions differ. Answers that are right
    in part vary less than as many that are right as a whole, so that bounds for those hold for these.
    """
    first, second, questions = (n / design_effect for n in (pair.only_first, pair.only_second, pair.questions))
    high = _upper(first, second, questions, risk)
    return Estimate(pair.difference, -_upper(second, first, questions, risk), high)


def _upper(first: float, second: float, questions: float, risk: float) -> float:
    """The largest loss under which one as small as was seen still comes up at least at rate `risk`."""
    quantile = NormalDist().inv_cdf(1 - risk)
    low, high = (first - second) / questions, 1.0
    for _ in range(50):
        loss = (low + high) / 2
        # If the loss is this one: the likeliest share of questions that only the second gets right.
        linear = first + second - loss * (2 * questions - first + second)
        root = sqrt(max(0.0, linear**2 + 8 * questions * second * loss * (1 - loss)))
        only_second = max(0.0, -loss, (linear + root) / (4 * questions))
        deviation = sqrt(max(0.0, questions * (2 * only_second + loss - loss**2)))
        if questions * loss - (first - second) - 0.5 < quantile * deviation:
            low = loss
        else:
            high = loss
    return high


def questions_needed(loss: float, *, risk: float = RISK) -> int:
    """The fewest independent questions on which the bound of a cell without any loss is below `loss`."""
    spread = NormalDist().inv_cdf(1 - risk) * sqrt(1 - loss)
    return floor((spread + sqrt(spread**2 + 2)) ** 2 / (4 * loss)) + 1


def design_effect(columns: Sequence[Sequence[float]], pictures: Sequence[Sequence[Hashable]]) -> float:
    """How many questions are worth one independent question, at least 1: those about one picture go wrong together.

    The variance of a mean over whole pictures, relative to that over single questions (Rao and Scott, Biometrics 48,
    1992), pooled over the columns, since few questions of a single one differ. pictures: for each column, what each of
    its questions is about.
    """
    together = apart = 0.0
    for column, places in zip(columns, pictures, strict=True):
        mean = sum(column) / len(column)
        sums: defaultdict[Hashable, float] = defaultdict(float)
        for value, place in zip(column, places, strict=True):
            sums[place] += value - mean
            apart += (value - mean) ** 2
        together += sum(value**2 for value in sums.values())
    return max(1.0, together / apart) if apart else 1.0
