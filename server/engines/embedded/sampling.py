"""The next tokens of a batch: what each row's history changes in its logits, then one draw for all rows."""

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import starmap
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)

from covervlm.server.core.errors import EngineError
from covervlm.server.core.generation import SamplingParams, TokenLogprob
from covervlm.server.engines.detokenizer import vocabulary_of
from covervlm.server.engines.embedded.draws import Truncation, draw


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


class Bans(LogitsProcessor):
    """vLLM's bad words: rules out every token that would complete one of the sequences within the completion."""

    def __init__(self, prompt_length: int, sequences: Sequence[Sequence[int]]) -> None:
        self.prompt_length = prompt_length
        self.sequences = [list(sequence) for sequence in sequences]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        generated = input_ids[0, self.prompt_length :].tolist()
        banned = [s[-1] for s in self.sequences if len(s) == 1 or generated[1 - len(s) :] == s[:-1]]
        return scores.index_fill(1, torch.tensor(banned, dtype=torch.long, device=scores.device), -torch.inf)


class Bias(LogitsProcessor):
    """OpenAI's logit_bias: added to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self.tokens = torch.tensor(list(bias), dtype=torch.long)
        self.values = torch.tensor(list(bias.values()))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_add(1, self.tokens.to(scores.device), self.values[None].to(scores.device))


class Allowed(LogitsProcessor):
    """vLLM's allowed_token_ids: rules out every other token."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = torch.tensor(tokens, dtype=torch.long)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = self.tokens.to(scores.device)
        return torch.full_like(scores, -torch.inf).index_copy_(1, tokens, scores[:, tokens])


class Sampler:
    """How the tokens of one choice of one request are chosen, whatever else is in the batch.

    Where `SamplingParams.is_plain_argmax` holds, the batch's argmax is the token, and no sampler is needed.
    `prompt_ids` are the text tokens of the prompt, which the repetition penalty counts. Choice i of a seeded request
    draws from the seed plus i. `end_ids`: what `min_tokens` holds back. `banned`: bad words as tokens.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        choice: int,
        *,
        end_ids: Collection[int] = (),
        banned: Sequence[Sequence[int]] = (),
    ) -> None:
        self.params = params
        self._processors = _processors(params, len(prompt_ids), end_ids, banned)
        self._ids = list(prompt_ids)
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed((params.seed + choice) % 2**63)

    def adjusted(self, logits: Tensor) -> Tensor:
        """Logits (V,) after bans, biases and penalties. Raises EngineError where no token is left."""
        if not self._processors:
            return logits
        ids: Any = torch.tensor([self._ids], dtype=torch.long, device=logits.device)
        scores = self._processors(ids, logits[None])[0]
        if scores.max() == -torch.inf:
            raise EngineError(
                "No token is left to continue the answer with; change allowed_token_ids, bad_words, logit_bias, "
                "min_tokens or the grammar."
            )
        return scores

    def number(self) -> int:
        """The next of this choice's random numbers, of 31 bits."""
        return int(torch.empty((), dtype=torch.int).random_(generator=self._generator))

    def remember(self, token: int) -> None:
        """What was chosen counts for the next token."""
        self._ids.append(token)


def choose(samplers: Mapping[int, Sampler], logits: Tensor) -> dict[int, int | Exception]:
    """The next token of some rows of logits (B, V), by row; or why there is none, which is that row's own affair.

    samplers: by row; the highest logit of each of these rows is finite.
    """
    chosen: dict[int, int | Exception] = {}
    greedy: dict[int, Tensor] = {}
    drawn: dict[int, Tensor] = {}
    for row, sampler in samplers.items():
        try:
            (greedy if sampler.params.greedy else drawn)[row] = sampler.adjusted(logits[row])
        except Exception as error:
            chosen[row] = error
    for some, tokens in ((greedy, _argmaxes), (drawn, functools.partial(_drawn, [samplers[row] for row in drawn]))):
        if some:
            chosen |= zip(some, tokens(torch.stack([*some.values()])), strict=True)
    for row, token in chosen.items():
        if isinstance(token, int):
            samplers[row].remember(token)
    return chosen


def _argmaxes(scores: Tensor) -> list[int]:
    return scores.argmax(-1).tolist()


def _drawn(samplers: Sequence[Sampler], scores: Tensor) -> list[int]:
    def column(values: Iterable[float], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor([*values], dtype=dtype).to(scores.device)

    params, size = [sampler.params for sampler in samplers], scores.shape[1]
    truncation = Truncation(
        temperature=column(one.temperature for one in params),
        min_p=column(one.min_p for one in params),
        top_k=column((min(one.top_k, size) if one.top_k > 0 else size for one in params), torch.long),
        top_p=column(one.top_p for one in params),
    )
    return draw(scores, truncation, column((sampler.number() for sampler in samplers), torch.int)).tolist()


def _processors(
    params: SamplingParams, prompt_length: int, end_ids: Collection[int], banned: Sequence[Sequence[int]]
) -> LogitsProcessorList:
    """Bans and biases first, then penalties, as vLLM orders them."""
    chain = LogitsProcessorList()
    if params.allowed_token_ids:
        chain.append(Allowed(params.allowed_token_ids))
    if banned:
        chain.append(Bans(prompt_length, banned))
    if params.min_tokens and end_ids:
        chain.append(MinNewTokensLengthLogitsProcessor(prompt_length, params.min_tokens, list(end_ids)))
    if params.logit_bias:
        chain.append(Bias(params.logit_bias))
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.presence_penalty or params.frequency_penalty:
        chain.append(OccurrencePenalty(prompt_length, params.presence_penalty, params.frequency_penalty))
    return chain


def bad_words(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Each word as tokens, as it is spelt at the beginning of a text and, where that differs, after a space.

    vLLM leaves the second out where it has more or fewer tokens than the first, and then the word can appear.
    """
    spelt = [tokenizer.encode(space + word.lstrip(), add_special_tokens=False) for word in words for space in ("", " ")]
    return [list(sequence) for sequence in dict.fromkeys(map(tuple, spelt)) if sequence]


def token_logprob(
    logits: Tensor, token: int, params: SamplingParams, tokenizer: PreTrainedTokenizerBase
) -> TokenLogprob:
    """Log probabilities under the model and the grammar, before penalties and temperature, as vLLM reports them.

    Beside the token's own, those of the likeliest `top_logprobs`, or of `logprob_token_ids` and the token.
    """
    logprobs = logits.log_softmax(-1)
    vocabulary = vocabulary_of(tokenizer)
    if params.logprob_token_ids:
        told = torch.tensor(sorted({token, *params.logprob_token_ids}), device=logprobs.device)
        order = logprobs[told].argsort(descending=True, stable=True)
        best = told[order]
    else:
        best = logprobs.topk(min(params.top_logprobs, len(logprobs))).indices
    alternatives = tuple(starmap(vocabulary.entry, zip(best.tolist(), logprobs[best].tolist(), strict=True)))
    return vocabulary.entry(token, float(logprobs[token]), alternatives)
