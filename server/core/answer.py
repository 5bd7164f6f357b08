"""The parts of an answer in the order in which they come, whatever API spells them."""

from dataclasses import dataclass
from typing import Literal

from covervlm.server.core.generation import TokenLogprob

EndReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Opening:
    """Choice `index` begins; every other part of it follows."""

    index: int


@dataclass(frozen=True)
class TextDelta:
    """The next piece of a choice's text; empty where there are only log probabilities or token ids."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class CallBegins:
    """Call number `call` of a choice, counted from 0; its arguments follow, and end where the next part begins."""

    index: int
    call: int
    id: str
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """The next piece of a call's arguments, which together are JSON if the model keeps to it."""

    index: int
    call: int
    text: str


@dataclass(frozen=True)
class Ending:
    """A choice is complete; `stop_string` is the one of the request's that ended it."""

    index: int
    reason: EndReason
    stop_string: str | None = None


Part = Opening | TextDelta | CallBegins | ArgumentsDelta | Ending
