"""Translates sampling parameters for vLLM, and vLLM's outputs into chunks."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from vllm import SamplingParams as VllmSamplingParams
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from covervlm.server.core.agreement import AnswerScores
from covervlm.server.core.errors import EngineError
from covervlm.server.core.generation import FinishReason, GenerationChunk, SamplingParams, TokenLogprob
from covervlm.server.core.grammar import BLANKS, Grammar
from covervlm.server.engines.detokenizer import Detokenizer, vocabulary_of

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


def sampling_params(params: SamplingParams, limit: int, added: Collection[str] = ()) -> VllmSamplingParams:
    """limit: the most tokens to generate. added: the tokenizer's added tokens.

    Our parameters have vLLM's names, except for the count of alternatives.
    """
    named = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(params).items()
        if name not in ("top_logprobs", "grammar")
    }
    named["max_tokens"] = limit
    named["min_tokens"] = min(params.min_tokens, limit)
    named["logit_bias"] = dict(params.logit_bias) or None
    named["allowed_token_ids"] = list(params.allowed_token_ids) or None
    # vLLM takes one of the two.
    chosen = list(params.logprob_token_ids) if params.logprobs else []
    named["logprob_token_ids"] = chosen or None
    named["logprobs"] = params.top_logprobs if params.logprobs and not chosen else None
    named["structured_outputs"] = None if params.grammar is None else _structured_outputs(params.grammar, added)
    return VllmSamplingParams(**named, detokenize=bool(params.stop), output_kind=RequestOutputKind.DELTA)


def _structured_outputs(grammar: Grammar, added: Collection[str]) -> StructuredOutputsParams:
    if grammar.kind == "choice":
        return StructuredOutputsParams(choice=json.loads(grammar.text))
    if grammar.kind == "json":
        options = {"whitespace_pattern": BLANKS, "lenient": grammar.lenient, "coerce_one_of": grammar.lenient}
        schema = json.loads(grammar.text) | {"x-guidance": options}
        return StructuredOutputsParams(json=json.dumps(schema))
    if grammar.kind == "tools":
        return StructuredOutputsParams(grammar=_with_tags(grammar.text, added))
    return StructuredOutputsParams(**{grammar.kind: grammar.text})


def _with_tags(text: str, added: Collection[str]) -> str:
    """The grammar of calls with added tokens such as <tool_call> as tokens, between the text around them.

    vLLM's llguidance takes every added token that looks like a tag for a special one, and then allows it where it would
    be the text's beginning, but fails when it comes.
    """
    tags = [token for token in added if re.fullmatch(r"<[^<>\s]+>", token)]
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("calls: "):
            for tag in tags:
                line = line.replace(tag, f'" {tag} "')
            lines[number] = line.replace('"" ', "").replace(' ""', "")
    return "\n".join(lines)


def answer_scores(answer: Sequence[int], positions: Sequence[dict[int, Logprob] | None]) -> AnswerScores:
    """Of an answer that stood at the end of a prompt. positions: vLLM's entries of each of its tokens by token id."""
    entries = [position for position in positions if position is not None]
    likeliest = [max(entry, key=lambda token: entry[token].logprob) for entry in entries]
    return AnswerScores(
        [float(entry[token].logprob) for token, entry in zip(answer, entries, strict=True)],
        likeliest,
        [float(entry[token].logprob) for token, entry in zip(likeliest, entries, strict=True)],
    )


class Chunks:
    """Turns vLLM's outputs for one request into chunks.

    vLLM says which tokens there are and when they end. They become text as in the transformers engine, so that texts
    and log probabilities agree byte by byte: vLLM itself writes bytes that form no character in another way.
    """

    def __init__(self, params: SamplingParams, tokenizer: Any) -> None:
        self._params = params
        self._vocabulary = vocabulary_of(tokenizer)
        self._choices = [
            Detokenizer(
                tokenizer,
                params.stop,
                min_tokens=params.min_tokens,
                include_stop=params.include_stop_str_in_output,
                specials=not params.skip_special_tokens,
            )
            for _ in range(params.n)
        ]

    def of(self, output: RequestOutput) -> Iterator[GenerationChunk]:
        """A chunk for every choice that got tokens in one step of vLLM."""
        for choice in output.outputs:
            reason = choice.finish_reason
            if reason is not None and reason not in _REASONS:
                raise EngineError("The engine abandoned this answer; send the request again.")
            detokenizer = self._choices[choice.index]
            text = "".join(self._pieces(choice, detokenizer))
            if reason is not None and not detokenizer.stopped:
                text += detokenizer.flush()
            yield GenerationChunk(
                index=choice.index,
                text=text,
                tokens=len(choice.token_ids),
                logprobs=detokenizer.logprobs(ended=reason is not None),
                finish_reason=None if reason is None else _REASONS[reason],
                token_ids=tuple(choice.token_ids),
                stop_string=detokenizer.stopped,
            )

    def _pieces(self, choice: CompletionOutput, detokenizer: Detokenizer) -> Iterator[str]:
        tokens = list(choice.token_ids)
        ended = choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str)
        if ended and not self._params.include_stop_str_in_output:
            tokens.pop()  # the token that ended the answer does not belong to its text
        for place, token in enumerate(tokens):
            if detokenizer.stopped:
                return
            logprob = self._logprob(token, choice.logprobs[place]) if self._params.logprobs else None
            yield detokenizer.feed(token, logprob)

    def _logprob(self, token: int, step: dict[int, Logprob]) -> TokenLogprob:
        """step: vLLM's entries of one position by token id, the chosen one among them."""
        best = sorted(step, key=lambda index: -step[index].logprob)
        if not self._params.logprob_token_ids:
            best = best[: self._params.top_logprobs]
        top = tuple(self._vocabulary.entry(index, float(step[index].logprob)) for index in best)
        return self._vocabulary.entry(token, float(step[token].logprob), top)
