"""Sampling parameters as vLLM takes them, and grammars as its llguidance reads them."""

import pytest
from llguidance import LLMatcher, hf
from transformers import AutoTokenizer

from covervlm.server.core.generation import Function, SamplingParams, ToolCall, ToolUse
from covervlm.server.engines.vllm.outputs import sampling_params
from covervlm.server.tools.formats import FORMATS
from covervlm.server.tools.grammar import calls_grammar
from tests.zoo.checkpoints import ZOO

LOOK = Function("look", parameters={"type": "object", "properties": {"at": {"enum": ["top", "left"]}}})
CALLS = [ToolCall("", "look", '{"at": "top"}')]


def test_told_tokens_take_the_place_of_the_likeliest_as_vllm_wants_them():
    told = SamplingParams(logprobs=True, top_logprobs=5, logprob_token_ids=(50, 7), allowed_token_ids=(42,))
    params = sampling_params(told, 8)
    assert (params.logprobs, params.logprob_token_ids, params.allowed_token_ids) == (None, [50, 7], [42])
    params = sampling_params(SamplingParams(logprobs=True, top_logprobs=5), 8)
    assert (params.logprobs, params.logprob_token_ids, params.allowed_token_ids) == (5, None, None)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("number", [1, 3])
def test_calls_as_a_tokenizer_writes_them_follow_their_grammar(tmp_path, name, number):
    """Qwen's vocabularies have <tool_call> as a token."""
    ZOO[name].save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    grammar = calls_grammar(ToolUse((LOOK,), format="hermes"))
    params = sampling_params(SamplingParams(grammar=grammar), 8, tokenizer.get_added_vocab())
    matcher = LLMatcher(hf.from_tokenizer(tokenizer), params.structured_outputs.grammar)
    written = FORMATS["hermes"].written(CALLS * number)
    tokens = tokenizer.encode(written, add_special_tokens=False)
    assert matcher.consume_tokens(tokens), matcher.get_error()
    assert matcher.is_accepting()
