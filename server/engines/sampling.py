"""The next token of one sequence, by transformers' own logits processors and a generator of its own."""

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from covervlm.server.engines.base import SamplingParams

GREEDY_BELOW = 1e-5
"""Smaller temperatures are 0, as in vLLM: logits divided by them would not be finite."""


class OccurrencePenalty(LogitsProcessor):
    """OpenAI's presence and frequency penalties: subtract from the logits of tokens generated so far.

    A token that occurred c > 0 times in the completion loses presence + c * frequency.
    """

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self.prompt_length = prompt_length
        self.presence = presence
        self.frequency = frequency

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        generated = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, generated, torch.ones_like(generated, dtype=scores.dtype))
        return scores - self.presence * (counts > 0) - self.frequency * counts


class Sampler:
    """Chooses the tokens of one choice of one request, whatever else is in the batch.

    `prompt_ids` are the text tokens of the prompt, which the repetition penalty counts. Choice i of a seeded request
    draws from the seed plus i.
    """

    def __init__(self, params: SamplingParams, prompt_ids: tuple[int, ...], choice: int) -> None:
        self.greedy = params.temperature < GREEDY_BELOW
        self._processors = _processors(params, len(prompt_ids))
        self._ids = list(prompt_ids)
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed((params.seed + choice) % 2**63)

    @property
    def is_plain_argmax(self) -> bool:
        """Greedy without penalties: the batch's argmax is this sequence's token."""
        return self.greedy and not self._processors

    def sample(self, logits: Tensor) -> int:
        """Choose from logits (V,), float32 on the CPU, and remember the choice."""
        scores = logits[None]
        if self._processors:
            scores = self._processors(torch.LongTensor([self._ids]), scores)
        if self.greedy:
            token = int(scores.argmax())
        else:
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
        self._ids.append(token)
        return token


def _processors(params: SamplingParams, prompt_length: int) -> LogitsProcessorList:
    """Penalties first, then temperature, then the truncations, as vLLM orders them."""
    chain = LogitsProcessorList()
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.presence_penalty or params.frequency_penalty:
        chain.append(OccurrencePenalty(prompt_length, params.presence_penalty, params.frequency_penalty))
    if params.temperature < GREEDY_BELOW:
        return chain
    if params.temperature != 1:
        chain.append(TemperatureLogitsWarper(params.temperature))
    if params.min_p > 0:
        chain.append(MinPLogitsWarper(params.min_p))
    if params.top_k > 0:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(params.top_p))
    return chain
