"""Prompts as texts, as token ids and as chats that a request shapes, and what the model makes of their own tokens."""

import asyncio
import copy
import math

import pytest
import torch

from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import (
    USUAL,
    GenerationRequest,
    Message,
    PruningPolicy,
    SamplingParams,
    TemplateOptions,
    TextPrompt,
)
from covervlm.server.engines.embedded import runner
from covervlm.server.models.processor import ChatProcessor
from tests.server.models.plain_generate import generate

TEXT = "USER: what color is the star? ASSISTANT:"


def request(prompt, template=USUAL, pruning=None, **sampling):
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 8} | sampling)
    return GenerationRequest("test", prompt, params, pruning or PruningPolicy(), template)


@torch.inference_mode()
def forward(plain, inputs):
    """(T, V): log probabilities of what follows each of the prompt's tokens, by transformers alone."""
    return plain.model(**inputs).logits[0].float().log_softmax(-1)


def assert_scored(entries, ids, logprobs, top):
    """Entries of a prompt's tokens against (T, V) log probabilities of another program."""
    assert [entry.id for entry in entries] == list(ids)
    assert math.isnan(entries[0].logprob)
    for position, entry in enumerate(entries[1:]):
        row = logprobs[position]
        best = row.topk(top) if top else None
        assert entry.logprob == pytest.approx(float(row[entry.id]), abs=2e-4)
        near = (row - row[entry.id]).abs() < 1e-3  # equals may change places
        assert abs(entry.rank - 1 - int((row > row[entry.id]).sum())) < int(near.sum())
        assert [other.logprob for other in entry.top] == pytest.approx(best.values.tolist() if top else [], abs=2e-4)
        assert [other.rank for other in entry.top] == list(range(1, top + 1))


async def test_a_text_and_its_ids_are_completed_as_transformers_completes_them(engine, plain, answer):
    tokenizer = plain.processor.tokenizer
    inputs = tokenizer(TEXT, return_tensors="pt")
    expected, _ = generate(plain.model, inputs, 8)
    for content in (TEXT, tuple(inputs.input_ids[0].tolist())):
        got = await answer(engine, request(TextPrompt(content)))
        assert [token for chunk in got.chunks for token in chunk.token_ids] == expected
        assert list(got.prompt.token_ids) == inputs.input_ids[0].tolist()


@pytest.mark.parametrize("top", [0, 3])
async def test_the_log_probabilities_of_a_text_are_those_of_a_forward_pass(engine, plain, answer, top):
    inputs = plain.processor.tokenizer(TEXT, return_tensors="pt")
    got = await answer(engine, request(TextPrompt(TEXT), prompt_logprobs=top))
    assert_scored(got.prompt.logprobs, inputs.input_ids[0].tolist(), forward(plain, inputs), top)


async def test_those_of_a_chat_with_an_image_have_an_entry_for_every_token_that_is_read(
    engine, plain, ask, answer, scene
):
    text = plain.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is it?"}]}],
        add_generation_prompt=True,
    )
    inputs = plain.processor(images=scene(0), text=text, return_tensors="pt")
    got = await answer(engine, ask(scene(0), "What color is it?", prompt_logprobs=2))
    assert_scored(got.prompt.logprobs, inputs["input_ids"][0].tolist(), forward(plain, inputs), 2)
    pruned = await answer(engine, ask(scene(0), "What color is it?", prompt_logprobs=0, pruning={"keep_tokens": 64}))
    assert len(pruned.prompt.logprobs) == len(pruned.prompt.token_ids) == pruned.prompt.prompt_tokens
    assert pruned.prompt.token_ids.count(plain.model.config.image_token_id) == 64


async def test_prompts_read_together_and_in_pieces_are_scored_as_if_alone(engine, answer, monkeypatch):
    texts = [TEXT, "a", "USER: is there a red circle in the image? how many squares are there?"]
    alone = [await answer(engine, request(TextPrompt(text), prompt_logprobs=1)) for text in texts]
    monkeypatch.setattr(runner, "_LOGITS", 1)
    together = await asyncio.gather(*(answer(engine, request(TextPrompt(t), prompt_logprobs=1)) for t in texts))
    for one, other in zip(alone, together, strict=True):
        values = [[entry.logprob for entry in got.prompt.logprobs[1:]] for got in (one, other)]
        assert values[0] == pytest.approx(values[1], abs=2e-4)


async def test_who_asks_for_no_log_probabilities_pays_for_none(engine, answer, monkeypatch):
    monkeypatch.setattr(engine._worker._runner, "scores", None)
    assert (await answer(engine, request(TextPrompt(TEXT)))).prompt.logprobs == ()


async def test_scores_that_fail_cost_their_own_request_alone(engine, answer, monkeypatch):
    def fail(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(engine._worker._runner, "scores", fail)
    failed, other = await asyncio.gather(
        answer(engine, request(TextPrompt(TEXT), prompt_logprobs=1)),
        answer(engine, request(TextPrompt(TEXT))),
        return_exceptions=True,
    )
    assert "failed on this request" in str(failed)
    assert other.text


async def test_tokens_are_those_of_the_tokenizer_and_become_their_text_again(engine, plain):
    tokenizer = plain.processor.tokenizer
    for special in (True, False):
        tokens = await engine.tokenize(request(TextPrompt(TEXT, special)))
        assert list(tokens.ids) == tokenizer(TEXT, add_special_tokens=special).input_ids
        assert list(tokens.names) == tokenizer.convert_ids_to_tokens(tokens.ids)
        assert await engine.detokenize(tokens.ids, Caller()) == tokenizer.decode(tokens.ids)


@pytest.mark.parametrize("pruning", [{}, {"keep_tokens": 64}, {"coverage": 0.8}])
async def test_the_tokens_of_a_chat_with_an_image_are_those_that_are_read_after_pruning(
    engine, ask, answer, scene, pruning
):
    asked = ask(scene(0), "What color is it?", pruning=pruning, max_tokens=2)
    got = await answer(engine, asked)
    tokens = await engine.tokenize(asked)
    assert list(tokens.ids) == list(got.prompt.token_ids)
    assert len(tokens.ids) == len(tokens.names) == got.prompt.prompt_tokens


def chat(*turns):
    return tuple(Message("user" if i % 2 == 0 else "assistant", (text,)) for i, text in enumerate(turns))


async def test_a_chat_is_written_as_the_request_says(engine, plain):
    turns = ("what color is the star?", "the star is")
    wire = [{"role": m.role, "content": [{"type": "text", "text": m.text}]} for m in chat(*turns)]
    for options in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
    ):
        text = plain.processor.apply_chat_template(wire, tokenize=False, **options)
        tokens = await engine.tokenize(request(chat(*turns), TemplateOptions(**options)))
        assert list(tokens.ids) == plain.processor.tokenizer(text).input_ids


def test_variables_reach_the_template_that_reads_them_and_no_other(plain):
    processor = copy.deepcopy(plain.processor)
    variables = TemplateOptions(variables={"style": "red", "other": 1, "tags": ["a", "b"]})
    unread = ChatProcessor(processor, {}).tokenize(chat("a star"), options=variables)
    assert unread == ChatProcessor(processor, {}).tokenize(chat("a star"))
    processor.chat_template = "{{ style }} {{ tags | join }} {{ messages[0].content[0].text }}"
    written = ChatProcessor(processor, {})
    assert written.detokenize(written.tokenize(chat("a star"), options=variables)) == "<s>red ab a star"


REFUSED = {
    "an empty text without special tokens": (TextPrompt("", special_tokens=False), "nothing"),
    "no ids": (TextPrompt(()), "nothing"),
    "an unknown id": (TextPrompt((1, 10**6)), "no token 1000000"),
    "a text beyond all bounds": (TextPrompt("word " * 100_000), "far longer"),
    "ids beyond all bounds": (TextPrompt((1,) * 10_000), "far longer"),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_is_no_prompt_is_refused_in_words(engine, answer, kind):
    prompt, words = REFUSED[kind]
    for ask in (engine.tokenize, lambda asked: answer(engine, asked)):
        with pytest.raises(InvalidRequest, match=words) as refused:
            await ask(request(prompt))
        assert refused.value.param == "prompt"


async def test_a_placeholder_makes_no_image_of_a_text(engine, plain):
    image = plain.model.config.image_token_id
    tokens = await engine.tokenize(request(TextPrompt("what is <image> for?")))
    assert image not in tokens.ids
    with pytest.raises(InvalidRequest, match="holds their placeholder"):
        await engine.tokenize(request(TextPrompt((1, image))))


@pytest.mark.parametrize(
    "messages",
    [(Message("user", ("",)),), (Message("assistant", ("  ",)),)],
)
async def test_only_a_text_can_be_continued(engine, messages):
    options = TemplateOptions(add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(InvalidRequest) as refused:
        await engine.tokenize(request(messages, options))
    assert refused.value.param == "continue_final_message"


@pytest.mark.parametrize(
    ("policy", "param"),
    [
        (PruningPolicy(parameters=(("tau_vision", ""),)), "vision_pruning.parameters.tau_vision"),
        (PruningPolicy(parameters=(("tau", None),)), "vision_pruning.parameters.tau"),
    ],
)
async def test_pruning_that_cannot_be_is_refused_where_there_is_nothing_to_prune(engine, answer, policy, param):
    asked = request((Message("user", ("Hello",)),), pruning=policy)
    for call in (engine.tokenize, lambda one: answer(engine, one)):
        with pytest.raises(InvalidRequest) as refused:
            await call(asked)
        assert refused.value.param == param
