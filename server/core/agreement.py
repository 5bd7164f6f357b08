"""Whether two models would write the same answer: token by token, each of them given the answer as it was served."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST = -100.0
"""Log probabilities below count as this, so that one impossible token does not make a sum infinite."""


@dataclass(frozen=True)
class AnswerScores:
    """What a model thinks of an answer that it is made to read after the prompt (teacher forcing).

    logprobs: of every token of the answer, in nats, before any temperature or penalty. likeliest, best: the likeliest
    token in its place, and that one's log probability.
    """

    logprobs: Sequence[float]
    likeliest: Sequence[int]
    best: Sequence[float]

    def choices(self, answer: Sequence[int]) -> list[int]:
        """What the model would have chosen in every place: the answer's own token wherever no other is likelier."""
        columns = zip(answer, self.logprobs, self.likeliest, self.best, strict=True)
        return [token if own >= best else other for token, own, other, best in columns]

    @property
    def nats(self) -> float:
        """The negative log likelihood of the whole answer."""
        return sum(-min(0.0, max(value, LEAST)) for value in self.logprobs)


@dataclass(frozen=True)
class Agreement:
    """How two models compare on one answer of `tokens` tokens.

    agreeing: tokens where both would have chosen the same. first_divergence: how many agree before the first that does
    not, None where all agree. served_nats, reference_nats: negative log likelihoods of the answer.
    """

    tokens: int
    agreeing: int
    first_divergence: int | None
    served_nats: float
    reference_nats: float

    @property
    def exact(self) -> bool:
        """Whether both would have written the same answer, if they write what is likeliest."""
        return self.agreeing == self.tokens

    @property
    def lost_per_token(self) -> float:
        """By how many nats a token the reference finds the answer less likely than the model that served it."""
        return (self.reference_nats - self.served_nats) / self.tokens


def agreement(
    answer: Sequence[int], served: AnswerScores, reference: AnswerScores, *, likeliest_only: bool
) -> Agreement:
    """Compares the model that served an answer with a reference.

    likeliest_only: the answer's tokens are what the first model found likeliest, which is then not asked of its scores:
    those may round otherwise than while it wrote. Where tokens were drawn, penalised or held to a grammar, both models
    are asked what they would have put in each token's place. Raises ValueError for scores that are not finite.
    """
    if not all(map(math.isfinite, (*served.best, *reference.best))):
        raise ValueError("a model's scores are not finite")
    chosen = list(answer) if likeliest_only else served.choices(answer)
    agrees = [one == other for one, other in zip(chosen, reference.choices(answer), strict=True)]
    first = agrees.index(False) if False in agrees else None
    return Agreement(len(agrees), sum(agrees), first, served.nats, reference.nats)
