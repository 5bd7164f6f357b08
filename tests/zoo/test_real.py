"""Real weights: SmolLM2's greedy answers are transformers' own, text and image, pruned and not, in batches of 1 to 16.

Run by `make test-real`.
"""

import asyncio
import hashlib
import itertools
import shutil

import jinja2
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from covervlm.pruners import PruneInput, get_pruner
from covervlm.server.core.generation import GenerationRequest, ImagePart, Message, PruningPolicy, SamplingParams
from covervlm.server.engines.detokenizer import Vocabulary
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.models.processor import visual_words
from tests.zoo.smollm2 import PACKAGES, save_smollm2

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

TOKENS = 16
OPENINGS = [
    "What is the capital of {}?",
    "Write one sentence about {}.",
    "Is {} larger than a mouse? Explain why.",
    "Translate '{}' to French, then to German 🦜.",
    "List three facts about {}:\n1.",
    "Complete the code:\ndef {}(x):\n    return",
    "Why do people like {}?",
    "日本語で{}とは何ですか?",
]
THINGS = (
    *("France", "the moon", "a cat", "bread", "rain", "gold", "jazz", "a bus", "time", "Peru", "tea", "an owl"),
    *("glass", "chess", "the sea", "winter", "a robot"),
)
POLICIES = [
    {},
    {"keep_tokens": 64},
    {"keep_tokens": 9, "method": "vision_coverage"},
    {"keep_ratio": 0.25},
    {"keep_tokens": 1},
    {"keep_tokens": 144, "method": "divprune"},
]
BATCHES = range(1, 17)


@pytest.fixture(scope="module")
def checkpoint():
    """Made once for all sessions."""
    folder = PACKAGES / "llava-smollm2"
    if not (folder / "chat_template.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        save_smollm2(folder)
    return folder


@pytest.fixture(scope="module")
def plain(checkpoint):
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(checkpoint)


def prompts(blocks):
    """sum(BATCHES) different prompts: (question, image or None, policy), half of them about a picture."""
    policies = itertools.cycle(POLICIES)
    for number, (thing, opening) in enumerate(itertools.product(THINGS, OPENINGS)):
        question = opening.format(thing)
        if number % 2:
            yield question, blocks(200 + 40 * (number % 7), 150 + 30 * (number % 5), seed=number), next(policies)
        else:
            yield question, None, {}


def request(question, image, policy):
    parts = [] if image is None else [ImagePart(image, hashlib.sha256(image.tobytes()).hexdigest())]
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, logprobs=True)
    policy = PruningPolicy(**policy | {"return_indices": True})
    return GenerationRequest("test", (Message("user", (*parts, question)),), sampling, policy)


@torch.inference_mode()
def reference(plain, question, image, policy):
    """transformers' generate; of a pruned image, over embeddings put together by hand: token ids, kept positions."""
    model, processor = plain
    tokenizer = processor.tokenizer
    content = [*([{"type": "image"}] if image else []), {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    greedy = {"max_new_tokens": TOKENS, "do_sample": False}
    if image is None or not policy:
        inputs = processor(images=image, text=text, return_tensors="pt")
        return model.generate(**inputs, **greedy)[0, inputs["input_ids"].shape[1] :].tolist(), None
    pixels = processor.image_processor(image, return_tensors="pt").pixel_values
    features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
    tokens = model.model.multi_modal_projector(features)
    embed = model.get_input_embeddings()
    words = tokenizer("".join(f" {word}" for word in visual_words(question)), add_special_tokens=False).input_ids
    count = policy.get("keep_tokens") or round(policy["keep_ratio"] * 576)
    seen = PruneInput(tokens, features, embed(torch.tensor(words, dtype=torch.long)), grid=(24, 24))
    [kept] = get_pruner(policy.get("method", "mmtok")).select([seen], count)
    before, after = (tokenizer(part, add_special_tokens=False).input_ids for part in text.split("<image>"))
    whole = torch.cat([embed(torch.tensor(before)), tokens[kept], embed(torch.tensor(after))])[None]
    mask = torch.ones(whole.shape[:2], dtype=torch.long)
    return model.generate(inputs_embeds=whole, attention_mask=mask, **greedy)[0].tolist(), kept.tolist()


async def answered(engine, one):
    chunks = [chunk async for chunk in engine.generate(one)]
    return chunks[0].prompt, "".join(c.text for c in chunks), [bytes(e.bytes) for c in chunks for e in c.logprobs]


async def test_greedy_answers_are_those_of_transformers_in_every_batch_size(checkpoint, plain, blocks, record_property):
    asked = list(itertools.islice(prompts(blocks), sum(BATCHES)))
    engine = TransformersEngine(TransformersEngineConfig(str(checkpoint), threads=1, max_running=max(BATCHES)))
    await engine.start()
    got = []
    try:
        for size in BATCHES:
            batch = [request(*one) for one in asked[len(got) : len(got) + size]]
            got += await asyncio.gather(*(answered(engine, one) for one in batch))
    finally:
        await engine.stop()
    vocabulary, eos = Vocabulary(plain[1].tokenizer), plain[0].generation_config.eos_token_id
    counts = {"text": 0, "image": 0, "pruned": 0, "tokens": 0}
    for one, (report, text, pieces) in zip(asked, got, strict=True):
        ids, kept = reference(plain, *one)
        assert pieces == [vocabulary.bytes_of(token) for token in ids if token != eos], one[0]
        assert text == plain[1].tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd"), one[0]
        if kept is not None:
            assert list(report.images[0].indices) == kept
        counts["text" if one[1] is None else "pruned" if kept is not None else "image"] += 1
        counts["tokens"] += len(ids)
    assert sum(counts.values()) - counts["tokens"] == len(asked) >= 100
    print(f"\n{len(asked)} prompts, all equal: {counts}")


def test_the_template_is_smollm2s_own(checkpoint, plain):
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "And?"},
    ]
    own = jinja2.Template((checkpoint / "own_template.jinja").read_text())
    parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
    rendered = plain[1].apply_chat_template(parts, add_generation_prompt=True)
    assert rendered == own.render(messages=chat, add_generation_prompt=True)
