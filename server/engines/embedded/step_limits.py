"""How much is done between two decoding steps, and by one for whom."""

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class StepLimits:
    """What is done for newcomers between two decoding steps: images encoded, and prompt tokens read.

    One image, and one prompt, may always be more. Larger batches keep a GPU busy. A CPU is as busy with two images or a
    thousand tokens, so there they would only let the first of them, and all running answers, wait for the last.

    share: the part of the answers that run together which one owner may have while others are there. A step takes a CPU
    the longer the more rows it has, and a GPU hardly.
    """

    images: int
    prompt_tokens: int
    share: float = 1.0

    @property
    def piece(self) -> int:
        """Tokens of an answer's scoring read at a time: the most that a newcomer waits for what nobody waits for."""
        return max(1, self.prompt_tokens // 8)

    @classmethod
    def for_device(cls, device: torch.device) -> Self:
        return (
            cls(images=2, prompt_tokens=1024, share=0.5) if device.type == "cpu" else cls(images=8, prompt_tokens=4096)
        )
