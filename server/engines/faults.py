"""What an exception out of the model means: for the caller of the request, and for the model."""

import torch

from covervlm.server.core.errors import EngineError, EngineOverloaded

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Also on the CPU, where torch raises a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def casts_doubt(error: BaseException) -> bool:
    """Whether the model itself may be broken: not where a request was at fault or memory was short."""
    return not (isinstance(error, EngineError) or is_out_of_memory(error))


def for_caller(error: BaseException) -> EngineError:
    """The error to answer with, in words written for callers."""
    if isinstance(error, EngineError):
        return error
    if is_out_of_memory(error):
        return EngineOverloaded(
            "There is not enough memory for this request right now; send it again later, or with fewer images.",
            retry_after=5,
        )
    if isinstance(error, FloatingPointError):
        return EngineError("The model produced numbers that are not finite; this answer was abandoned.")
    return EngineError("The engine failed on this request; if it happens again, report the request id.")
