"""An answer of one choice as runs of text and calls, one after the other, for APIs that open and close each."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from covervlm.server.core.answer import ArgumentsDelta, CallBegins, Ending, Part, TextDelta
from covervlm.server.core.generation import TokenLogprob


@dataclass
class Section:
    """A run of text, or where there is a `call`, its arguments; what is known of it so far."""

    call: CallBegins | None = None
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class Begins:
    section: Section


@dataclass(frozen=True)
class Grows:
    """The section has grown by `text`, which it already holds."""

    section: Section
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Ends:
    section: Section


Step = Begins | Grows | Ends | Ending


async def in_sections(parts: AsyncIterator[Part]) -> AsyncIterator[Step]:
    """Every section begins, grows and ends before the next one; there is at least one, if only an empty text."""
    section: Section | None = None
    early: tuple[TokenLogprob, ...] = ()  # of a text that is still held back, because it might become a call
    async for part in parts:
        new = None
        match part:
            case CallBegins():
                new, early = Section(part), ()
            case TextDelta() if section is None or section.call:
                early += part.logprobs
                if part.text:
                    new, part, early = Section(), replace(part, logprobs=early), ()
            case Ending() if section is None:
                new = Section()
        if new is not None:
            if section is not None:
                yield Ends(section)
            section = new
            yield Begins(section)
        match part:
            case TextDelta() if section is not None and not section.call and (part.text or part.logprobs):
                section.pieces.append(part.text)
                section.logprobs += part.logprobs
                yield Grows(section, part.text, part.logprobs)
            case ArgumentsDelta() if section is not None:
                section.pieces.append(part.text)
                yield Grows(section, part.text)
            case Ending() if section is not None:
                yield Ends(section)
                yield part
