"""What it costs to parse JSON that strangers sent, told from its bytes before: a parser keeps all threads waiting."""

import numpy as np
from numpy.typing import NDArray

SMALL = 64 * 1024
"""Bytes below which nothing is counted: whatever they hold, it is parsed in no time."""
_VALUE, _ESCAPE, _OTHER = 1500, 60, 8
"""Nanoseconds to parse a value or 64 digits, an escape, and a blank or a byte of a longer character."""
_IN_MIXED = 8
"""Nanoseconds for a byte of a string that holds an escape or a longer character somewhere: it is copied and widened."""
_PIECE = 2**18


def takes_too_long(text: bytes, longest: float) -> bool:
    """Whether parsing might take `longest` seconds more than plain text does (0.04 s for 60 MB).

    What is counted counts inside of strings as well.
    """
    if len(text) < SMALL:
        return False
    left, everything, mixed = int(longest * 1e9), np.frombuffer(text, np.uint8), _MixedStrings()
    for start in range(0, len(text), _PIECE):
        piece = everything[start : start + _PIECE]
        # In bytes, where what is below 33 wraps around.
        other = int(np.count_nonzero(piece - np.uint8(33) > 94))
        escapes = int(np.count_nonzero(piece == ord("\\")))
        values = int(np.count_nonzero((piece == ord(",")) | (piece == ord("[")) | (piece == ord("{"))))
        digits = piece[: len(piece) // 64 * 64] - np.uint8(ord("0")) < 10
        values += int(np.count_nonzero(digits.reshape(-1, 64).all(axis=1)))
        left -= (
            values * _VALUE
            + escapes * _ESCAPE
            + other * _OTHER
            + mixed.bytes_of(text[start : start + _PIECE], piece) * _IN_MIXED
        )
        if left < 0:
            return True
    return False


class _MixedStrings:
    """Counts the bytes of strings that hold an escape or a longer character, piece by piece.

    What lies between two quotes is taken for a string, which is right for all that is long. A quote after a backslash
    is taken for a part of its string even where the backslash is itself escaped; the string then goes on to the next.
    """

    def __init__(self) -> None:
        self._length = 0
        self._mixed = False
        self._last = 0

    def bytes_of(self, text: bytes, piece: NDArray[np.uint8]) -> int:
        """Those of the strings that end in this piece, and of the last one as far as it is known to be one."""
        begun, was_mixed = self._length, self._mixed
        special = (piece == ord("\\")) | (piece > 127)
        if self._last != ord("\\") and not special.any() and (end := text.rfind(b'"')) >= 0:
            # All strings that begin here are plain.
            self._length, self._mixed, self._last = len(text) - 1 - end, False, text[-1]
            return text.index(b'"') + 1 if was_mixed else 0
        quotes = piece == ord('"')
        quotes[1:] &= piece[:-1] != ord("\\")
        quotes[0] &= self._last != ord("\\")
        ends = np.flatnonzero(quotes)
        # The first stretch is what earlier pieces began, the last one goes on in the next.
        lengths = np.diff(ends, prepend=-1, append=len(piece) - 1)
        lengths[0] += begun
        mixed = np.zeros(len(lengths), bool)
        mixed[np.searchsorted(ends, np.flatnonzero(special))] = True
        mixed[0] |= was_mixed
        self._length, self._mixed, self._last = int(lengths[-1]), bool(mixed[-1]), text[-1]
        return int(lengths[mixed].sum()) - begun * was_mixed
