"""Sampling parameters into vLLM's terms, and vLLM's outputs into chunks."""

from collections.abc import Iterator
from typing import Any

from vllm import SamplingParams as VllmSamplingParams
from vllm.sampling_params import RequestOutputKind

from covervlm.server.engines.base import EngineError, FinishReason, GenerationChunk, SamplingParams, TokenLogprob

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


def sampling_params(params: SamplingParams, limit: int) -> VllmSamplingParams:
    """limit: the most tokens to generate."""
    return VllmSamplingParams(
        n=params.n,
        max_tokens=limit,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=params.seed,
        stop=list(params.stop),
        ignore_eos=params.ignore_eos,
        logprobs=params.top_logprobs if params.logprobs else None,
        output_kind=RequestOutputKind.DELTA,
    )


def chunks(output: Any, params: SamplingParams, tokenizer: Any) -> Iterator[GenerationChunk]:
    """A chunk for every choice that one step of vLLM brought forward."""
    for choice in output.outputs:
        reason = choice.finish_reason
        if reason is not None and reason not in _REASONS:
            raise EngineError("The engine abandoned this answer; the request can be sent again.")
        logprobs: tuple[TokenLogprob, ...] = ()
        if params.logprobs and choice.logprobs:
            entries = zip(choice.token_ids, choice.logprobs, strict=True)
            logprobs = tuple(_logprob(token, step, params.top_logprobs, tokenizer) for token, step in entries)
        yield GenerationChunk(
            index=choice.index,
            text=choice.text,
            tokens=len(choice.token_ids),
            logprobs=logprobs,
            finish_reason=None if reason is None else _REASONS[reason],
        )


def _logprob(token: int, step: Any, top: int, tokenizer: Any) -> TokenLogprob:
    """step: vLLM's entries of one position by token id, the chosen one among them."""

    def entry(index: int, alternatives: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        text = str(tokenizer.decode([index]))
        return TokenLogprob(text, tuple(text.encode()), float(step[index].logprob), alternatives)

    best = sorted(step, key=lambda index: -step[index].logprob)[:top]
    return entry(token, tuple(entry(index) for index in best))
