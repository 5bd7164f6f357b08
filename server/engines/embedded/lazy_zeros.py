"""Memory on a CPU that costs nothing until it is written to."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 64


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros whose pages the system makes when they are first written, where `torch.zeros` would write all."""
    size = math.prod(shape) * dtype.itemsize
    data = np.zeros(size + _ALIGNED, np.uint8)
    start = -data.ctypes.data % _ALIGNED
    return torch.from_numpy(data[start : start + size]).view(dtype).view(*shape)
