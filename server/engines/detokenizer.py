"""Text of a growing answer: whole characters only, and nothing past a stop string."""

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


class Detokenizer:
    """Turns one sequence's tokens into text pieces.

    Bytes of an unfinished character wait for the rest of it. Text that might be the beginning of a stop string waits
    until that is decided; once a stop string appears, the text ends before it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = stop
        self._held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """Add a token; returns the text that is now certain, possibly empty. Sets `stopped` at a stop string."""
        piece = self._stream.step(self._backend, token)
        if piece is None:
            return ""
        if not self._stop:
            return piece
        self._held += piece
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        return self._release(len(self._held) - self._undecided())

    def flush(self) -> str:
        """What was held back for a stop string that never came; the sequence has ended."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(len(stop) for stop in self._stop) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
