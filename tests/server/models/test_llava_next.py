import asyncio
import hashlib
from itertools import cycle
from types import SimpleNamespace

import pytest
import pytest_asyncio
import torch
from transformers import AutoProcessor, LlavaNextForConditionalGeneration

from covervlm.pruners import PruneInput, get_pruner
from covervlm.server.core.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    PruningPolicy,
    SamplingParams,
)
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.models.llava_next import LlavaNextAdapter
from covervlm.server.selection.selector import parts_to_prune
from tests.server.models.tiny_llava import SIDE

SIZES = [(32, 32), (64, 64), (100, 30), (20, 90), (64, 40), (33, 60), (1, 1), (200, 2), (2000, 1), (1, 2000), (3, 1)]


@pytest.fixture(scope="module")
def adapter(tiny_llava_next) -> LlavaNextAdapter:
    adapter = load_adapter(Checkpoint(tiny_llava_next))
    assert isinstance(adapter, LlavaNextAdapter)
    return adapter


@pytest.fixture(scope="module")
def plain(tiny_llava_next):
    """The same checkpoint as transformers alone loads it."""
    model = LlavaNextForConditionalGeneration.from_pretrained(tiny_llava_next, dtype=torch.float32).eval()
    return SimpleNamespace(model=model, processor=AutoProcessor.from_pretrained(tiny_llava_next))


def chat(*parts) -> tuple[Message, ...]:
    def wrap(part):
        if isinstance(part, str):
            return part
        return ImagePart(part, hashlib.sha256(part.tobytes() + repr(part.size).encode()).hexdigest())

    return (Message("user", tuple(map(wrap, parts))),)


def as_transformers(*parts) -> list[dict]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts]
    return [{"role": "user", "content": content}]


@torch.inference_mode()
def greedy(model, embeddings, steps):
    """Greedy decoding by the whole model from embeddings, recomputing everything at each step."""
    tokens, logits = [], []
    for _ in range(steps):
        logits.append(model(inputs_embeds=embeddings[None]).logits[0, -1])
        tokens.append(int(logits[-1].argmax()))
        if tokens[-1] == model.generation_config.eos_token_id:
            break
        embeddings = torch.cat([embeddings, model.get_input_embeddings()(torch.tensor(tokens[-1:]))])
    return tokens, torch.stack(logits)


@torch.inference_mode()
def crops_by_hand(plain, image):
    """Projected tokens and tower features of every crop, (crops, 16, d), and the processor's inputs."""
    inputs = plain.processor.image_processor(image, return_tensors="pt")
    tower = plain.model.model.vision_tower(inputs.pixel_values[0], output_hidden_states=True)
    features = tower.hidden_states[-2][:, 1:]
    return plain.model.model.multi_modal_projector(features), features, inputs


def remaining(plain, image):
    """(rows of tiles, columns of tiles, first row, end row, first column, end column) of the merged, unpadded grid."""
    from transformers.image_processing_utils import select_best_resolution

    width, height = image.size
    best = select_best_resolution((height, width), plain.model.config.image_grid_pinpoints)
    tall, wide = best[0] // 32, best[1] // 32
    rows, columns = tall * SIDE, wide * SIDE
    if width / height > columns / rows:
        cut = (rows - int(round(height * columns / width, 7))) // 2
        return tall, wide, cut, rows - cut, 0, columns
    cut = (columns - int(round(width * rows / height, 7))) // 2
    return tall, wide, 0, rows, cut, columns - cut


@pytest.mark.parametrize(
    "sizes",
    [[], [(64, 64)], [(100, 30)], [(20, 90)], [(1, 1)], [(64, 40), (33, 60)], [(200, 2), (32, 32)]],
    ids=str,
)
def test_keeping_all_tokens_equals_transformers_generate(adapter, plain, reference, noise, sizes):
    images = [noise(w, h, seed=i) for i, (w, h) in enumerate(sizes)]
    parts = (*images, "Which color does the star have?")
    expected = reference(plain.model, plain.processor, as_transformers(*parts), images, 12)
    encoded = adapter.encode([adapter.preprocess(image) for image in images]) if images else []
    embeddings, positions = adapter.assemble(adapter.tokenize(chat(*parts)), encoded)
    assert len(embeddings) == expected.prompt
    assert positions.tolist() == [list(range(expected.prompt + 1))]
    tokens, logits = greedy(adapter.model, embeddings, 12)
    assert tokens == expected.tokens
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_tokens_of_an_image_are_those_that_transformers_packs(adapter, plain, noise, size):
    image = noise(*size)
    inputs = plain.processor.image_processor(image, return_tensors="pt")
    with torch.inference_mode():
        packed = plain.model.get_image_features(inputs.pixel_values, inputs.image_sizes).pooler_output[0]
    [encoded] = adapter.encode([adapter.preprocess(image)])
    torch.testing.assert_close(adapter.whole(encoded), packed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_regions_are_the_base_crop_and_what_unpadding_leaves_of_each_tile(adapter, plain, noise, size):
    image = noise(*size)
    tokens, features, _ = crops_by_hand(plain, image)
    tall, wide, top, bottom, left, right = remaining(plain, image)
    [encoded] = adapter.encode([adapter.preprocess(image)])
    expected = [(0, [(r, c) for r in range(SIDE) for c in range(SIDE)])]
    for tile in range(tall * wide):
        cells = [
            (row - tile // wide * SIDE, column - tile % wide * SIDE)
            for row in range(top, bottom)
            for column in range(left, right)
            if (row // SIDE, column // SIDE) == (tile // wide, tile % wide)
        ]
        if cells:
            expected.append((tile + 1, cells))
    sequence, parts = adapter.whole(encoded), encoded.layout.parts
    assert len(parts) == len(expected)
    for part, (crop, cells) in zip(parts, expected, strict=True):
        patches = [row * SIDE + column for row, column in cells]
        rows, columns = len({row for row, _ in cells}), len({column for _, column in cells})
        assert part.grid == (rows, columns)
        assert (part.positions.diff() > 0).all()
        torch.testing.assert_close(sequence[part.positions], tokens[crop, patches], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoded.features[part.rows], features[crop, patches], atol=1e-5, rtol=1e-5)
    named = torch.cat([part.positions for part in parts])
    assert len(set(named.tolist())) == len(named)
    newlines = sorted(set(range(encoded.layout.total)) - set(named.tolist()))
    assert len(newlines) == (bottom - top)
    for place in newlines:
        torch.testing.assert_close(sequence[place], plain.model.model.image_newline.detach())


@pytest.mark.parametrize("size", [(64, 64), (100, 30), (64, 40), (20, 90)], ids=str)
def test_pruned_output_equals_a_prompt_built_by_hand(adapter, plain, noise, size):
    """Per-crop MMTok, kept tile tokens read in raster order of the merged grid, no newlines; all with plain loops."""
    image, question, budget = noise(*size, seed=3), "Which color does the star have?", 3
    tokens, features, _ = crops_by_hand(plain, image)
    tall, wide, top, bottom, left, right = remaining(plain, image)
    embed = plain.model.get_input_embeddings()
    words = plain.processor.tokenizer(" color star", add_special_tokens=False).input_ids
    text = embed(torch.tensor(words)).detach()

    def select(crop, patches):
        pruner = get_pruner("mmtok")
        [kept] = pruner.select([PruneInput(tokens[crop, patches], features[crop, patches], text)], budget)
        return [patches[j] for j in kept.tolist()]

    by_hand = [tokens[0, patch] for patch in select(0, list(range(SIDE * SIDE)))]
    placed = {}
    for tile in range(tall * wide):
        corner = (tile // wide * SIDE, tile % wide * SIDE)
        patches = [
            r * SIDE + c
            for r in range(SIDE)
            for c in range(SIDE)
            if top <= corner[0] + r < bottom and left <= corner[1] + c < right
        ]
        for patch in select(tile + 1, patches) if patches else []:
            placed[corner[0] + patch // SIDE, corner[1] + patch % SIDE] = tokens[tile + 1, patch]
    by_hand += [placed[cell] for cell in sorted(placed)]
    prompt = plain.processor.apply_chat_template(as_transformers(image, question), add_generation_prompt=True)
    before, after = prompt.split("<image>")
    ids = [plain.processor.tokenizer(before).input_ids]
    ids.append(plain.processor.tokenizer(after, add_special_tokens=False).input_ids)
    by_hand = torch.cat([embed(torch.tensor(ids[0])), torch.stack(by_hand), embed(torch.tensor(ids[1]))]).detach()

    [encoded] = adapter.encode([adapter.preprocess(image)])
    text_rows = adapter.question_embeddings(question)
    torch.testing.assert_close(text_rows, text)
    pruner = get_pruner("mmtok")
    chosen = pruner.select(parts_to_prune(encoded, pruner, text_rows, seed=0), budget)
    positions = encoded.layout.positions(chosen)
    pruned, _ = adapter.assemble(adapter.tokenize(chat(image, question)), [encoded], [positions])
    torch.testing.assert_close(pruned, by_hand, atol=1e-5, rtol=1e-5)
    expected, expected_logits = greedy(plain.model, by_hand, 8)
    answered, logits = greedy(adapter.model, pruned, 8)
    assert answered == expected
    torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=1e-4)


def test_batched_encoding_equals_one_by_one(adapter, noise):
    inputs = [adapter.preprocess(noise(*size, seed=i)) for i, size in enumerate(SIZES)]
    for batched, entry in zip(adapter.encode(inputs, cls_attention=True), inputs, strict=True):
        [single] = adapter.encode([entry], cls_attention=True)
        torch.testing.assert_close(batched.tokens, single.tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batched.features, single.features, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batched.cls_attention, single.cls_attention, atol=1e-6, rtol=1e-5)
        for one, other in zip(batched.layout.parts, single.layout.parts, strict=True):
            assert one.positions.tolist() == other.positions.tolist()
            assert one.grid == other.grid


def test_cls_attention_of_every_crop_is_the_towers_own(adapter, tiny_llava_next, plain, noise):
    image = noise(64, 64)
    eager = LlavaNextForConditionalGeneration.from_pretrained(
        tiny_llava_next, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    pixels = plain.processor.image_processor(image, return_tensors="pt").pixel_values[0]
    with torch.inference_mode():
        attention = eager.model.vision_tower(pixels, output_attentions=True).attentions[-2].mean(1)[:, 0, 1:]
    [encoded] = adapter.encode([adapter.preprocess(image)], cls_attention=True)
    torch.testing.assert_close(encoded.cls_attention, attention.flatten(), atol=1e-6, rtol=1e-4)
    assert adapter.encode([adapter.preprocess(image)])[0].cls_attention is None


@pytest_asyncio.fixture
async def engine(tiny_llava_next):
    engine = TransformersEngine(TransformersEngineConfig(str(tiny_llava_next), threads=1))
    await engine.start()
    yield engine
    await engine.stop()


def request(parts, pruning=None) -> GenerationRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=10, logprobs=True)
    return GenerationRequest("test", chat(*parts), sampling, PruningPolicy(**pruning or {}))


@pytest.mark.parametrize("sizes", [[], [(64, 40)], [(20, 90), (64, 64)]], ids=str)
async def test_the_engine_answers_as_transformers_does(engine, plain, reference, answer, noise, sizes):
    images = [noise(w, h, seed=i) for i, (w, h) in enumerate(sizes)]
    parts = (*images, "Which color does the star have?")
    expected = reference(plain.model, plain.processor, as_transformers(*parts), images, 10)
    got = await answer(engine, request(parts))
    assert got.prompt.prompt_tokens == expected.prompt
    assert got.choices[0].tokens == [
        text
        for token in expected.tokens
        if (text := plain.processor.tokenizer.decode([token], skip_special_tokens=True))
    ]


@pytest.mark.parametrize("budget", [10, 17, 1])
async def test_a_budget_is_split_evenly_over_the_crops(engine, answer, noise, budget):
    image = noise(64, 64)  # four whole tiles and the base crop
    got = await answer(engine, request((image, "What is it?"), {"keep_tokens": budget, "return_indices": True}))
    [report] = got.prompt.images
    assert report.total == 16 + 64 + 8
    assert report.kept == 5 * max(1, budget // 5)
    assert sum(place < 16 for place in report.indices) == max(1, budget // 5)


async def test_sixteen_concurrent_requests_equal_their_single_answers(engine, answer, noise):
    methods = cycle(
        [
            "mmtok",
            "vision_coverage",
            "text_coverage",
            "divprune",
            "cls_attention",
            "cdpruner",
            "random",
            "uniform",
            "none",
        ]
    )
    budgets = cycle([{"keep_tokens": 5}, {"keep_ratio": 0.4}, {"keep_tokens": 11}])
    requests = [
        request(
            (noise(40 + 30 * (i % 3), 84 - 20 * (i % 2), seed=i % 4), f"Where is number {i}?"),
            {"method": next(methods), "return_indices": True} | next(budgets),
        )
        for i in range(16)
    ]
    together = await asyncio.gather(*(answer(engine, one) for one in requests))
    for one, batched in zip(requests, together, strict=True):
        alone = await answer(engine, one)
        assert batched.choices[0].tokens == alone.choices[0].tokens
        assert batched.prompt.prompt_tokens == alone.prompt.prompt_tokens
        assert [image.indices for image in batched.prompt.images] == [image.indices for image in alone.prompt.images]
