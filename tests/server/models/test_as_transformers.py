"""The architectures of recent years answer as transformers does, whole and pruned, alone and together."""

import asyncio
import base64
import io
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoModelForImageTextToText, AutoTokenizer

from covervlm.pruners import get_pruner
from covervlm.server import create_app
from covervlm.server.core.generation import GenerationRequest, PruningPolicy, SamplingParams
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.selection.selector import parts_to_prune
from covervlm.server.settings import Settings
from tests.server.models import tiny_internvl, tiny_onevision, tiny_qwen3
from tests.server.models.plain_generate import generate
from tests.server.models.tiny_qwen import chat

KITS = {
    "llava_onevision": (tiny_onevision, tiny_onevision.save_tiny_onevision),
    "internvl": (tiny_internvl, tiny_internvl.save_tiny_internvl),
    "qwen3_vl": (tiny_qwen3, tiny_qwen3.save_tiny_qwen3),
}
CASES = [(name, case) for name, (kit, _) in KITS.items() for case in kit.PROMPTS]
PRUNED = [(name, case) for name, case in CASES if case not in ("no image", "tiny image")]


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """An architecture's checkpoint: its path, tools, and what transformers alone makes of it."""
    made = {}

    def get(name):
        if name not in made:
            kit, save = KITS[name]
            path = tmp_path_factory.mktemp(name)
            save(path)
            model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
            made[name] = SimpleNamespace(
                path=path,
                kit=kit,
                model=model,
                tokenizer=AutoTokenizer.from_pretrained(path),
                adapter=load_adapter(Checkpoint(path)),
            )
        return made[name]

    return get


@torch.inference_mode()
def greedy(adapter, prompt, steps):
    """Plain greedy decoding from an assembled prompt, recomputing everything at each step."""
    (embeddings, positions), tokens, logits = prompt, [], []
    positions, following = positions[:, :-1], int(positions[0, -1])
    for step in range(steps):
        given = positions[:, None] if adapter.position_axes > 1 else positions
        hidden = adapter.language_model(inputs_embeds=embeddings[None], position_ids=given).last_hidden_state
        logits.append(adapter.lm_head(hidden[0, -1]))
        tokens.append(int(logits[-1].argmax()))
        if tokens[-1] in adapter.eos_ids:
            break
        new = adapter.embeddings(torch.tensor(tokens[-1:]))
        new = torch.nn.functional.pad(new, (0, embeddings.shape[1] - new.shape[1]))
        embeddings = torch.cat([embeddings, new])
        positions = torch.cat([positions, torch.full((len(positions), 1), following + step)], dim=1)
    return tokens, torch.stack(logits)


def shown(tokenizer, ids):
    return [text for token in ids if (text := tokenizer.decode([token], skip_special_tokens=True))]


def encode(adapter, parts):
    inputs = [
        adapter.preprocess_video(part, 2.0) if isinstance(part, list) else adapter.preprocess(part)
        for part in parts
        if not isinstance(part, str)
    ]
    return adapter.encode(inputs) if inputs else []


@pytest.mark.parametrize(("name", "case"), CASES)
def test_keeping_all_tokens_equals_transformers_generate(kits, noise, name, case):
    made = kits(name)
    parts = made.kit.PROMPTS[case](noise)
    inputs = made.kit.inputs_of(made.model, made.tokenizer, parts)
    expected, expected_logits = generate(made.model, inputs, 8)
    prompt = made.adapter.assemble(made.adapter.tokenize(chat(*parts)), encode(made.adapter, parts))
    assert len(prompt[0]) == inputs["input_ids"].shape[1]
    tokens, logits = greedy(made.adapter, prompt, 8)
    assert tokens == expected
    torch.testing.assert_close(logits, expected_logits, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("name", "case"), PRUNED)
def test_pruned_output_equals_the_whole_prompt_without_the_dropped_tokens(kits, noise, name, case):
    """transformers' own inputs, from which rows are deleted, and its own model, which reads them from the start."""
    made = kits(name)
    adapter, parts = made.adapter, made.kit.PROMPTS[case](noise)
    images = encode(adapter, parts)
    text = adapter.question_embeddings(made.kit.QUESTION)
    pruner = get_pruner("mmtok", **adapter.architecture.pruner_params)
    kept = [image.layout.positions(pruner.select(parts_to_prune(image, pruner, text, seed=0), 2)) for image in images]
    inputs = made.kit.inputs_of(made.model, made.tokenizer, parts)
    stays = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    of_vision = torch.isin(inputs["input_ids"][0], torch.tensor([*adapter.chat.placeholders.values()])).nonzero()[:, 0]
    for own, places in zip(of_vision.split([image.layout.total for image in images]), kept, strict=True):
        stays[own] = False
        stays[own[places]] = True
    expected, expected_logits = made.kit.pruned_by_hand(made.model, made.tokenizer, parts, inputs, stays, 6)
    prompt = adapter.assemble(adapter.tokenize(chat(*parts)), images, kept)
    assert len(prompt[0]) == int(stays.sum()) < len(stays)
    tokens, logits = greedy(adapter, prompt, 6)
    assert tokens == expected[: len(tokens)]
    torch.testing.assert_close(logits, expected_logits[: len(tokens)], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", KITS)
def test_batched_encoding_equals_one_by_one(kits, noise, name):
    made = kits(name)
    parts = [part for make in made.kit.PROMPTS.values() for part in make(noise) if not isinstance(part, str)]
    for batched, part in zip(encode(made.adapter, parts), parts, strict=True):
        [single] = encode(made.adapter, [part])
        assert batched.layout.total == single.layout.total
        for one, other in zip(batched._tensors, single._tensors, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert batched.intact


@pytest.mark.parametrize("case", ["two images", "clip between images"])
@pytest.mark.parametrize("name", KITS)
@torch.inference_mode()
def test_half_precision_answers_as_transformers_in_half_precision(kits, noise, name, case):
    made = kits(name)
    adapter = load_adapter(Checkpoint(made.path, dtype="bfloat16"))
    model = AutoModelForImageTextToText.from_pretrained(made.path, dtype=torch.bfloat16).eval()
    parts = made.kit.PROMPTS[case](noise)
    inputs = made.kit.inputs_of(model, made.tokenizer, parts)
    embeddings, positions = adapter.assemble(adapter.tokenize(chat(*parts)), encode(adapter, parts))
    positions = positions[:, None, :-1] if adapter.position_axes > 1 else positions[:, :-1]
    hidden = adapter.language_model(inputs_embeds=embeddings[None], position_ids=positions).last_hidden_state
    expected = model(**inputs).logits
    assert hidden.dtype == embeddings.dtype == torch.bfloat16
    scale = expected.float().abs().max()
    assert (adapter.lm_head(hidden) - expected).float().abs().max() < 0.05 * scale


@pytest.mark.parametrize("name", KITS)
async def test_the_engine_answers_as_transformers_and_together_as_alone(kits, answer, noise, name):
    made = kits(name)

    def request(parts, **pruning):
        sampling = SamplingParams(temperature=0.0, max_tokens=8, logprobs=True)
        return GenerationRequest("test", chat(*parts), sampling, PruningPolicy(**pruning))

    prompts = [make(noise) for make in made.kit.PROMPTS.values()]
    methods = cycle(["mmtok", "vision_coverage", "divprune", "cdpruner", "random", "uniform"])
    pruned = [request(parts, keep_tokens=6, method=next(methods), return_indices=True) for parts in prompts]
    engine = TransformersEngine(TransformersEngineConfig(str(made.path), threads=1))
    await engine.start()
    try:
        whole = await asyncio.gather(*(answer(engine, request(parts)) for parts in prompts))
        together = await asyncio.gather(*(answer(engine, one) for one in pruned))
        alone = [await answer(engine, one) for one in pruned]
    finally:
        await engine.stop()
    for parts, got in zip(prompts, whole, strict=True):
        inputs = made.kit.inputs_of(made.model, made.tokenizer, parts)
        assert got.prompt.prompt_tokens == inputs["input_ids"].shape[1]
        assert list(got.prompt.token_ids) == inputs["input_ids"][0].tolist()
        assert got.choices[0].tokens == shown(made.tokenizer, generate(made.model, inputs, 8)[0])
    for one, other in zip(together, alone, strict=True):
        assert one.choices[0].tokens == other.choices[0].tokens
        assert [image.indices for image in one.prompt.images] == [image.indices for image in other.prompt.images]


def wire_part(part):
    """A part of a message in OpenAI's terms; frames are PNG, so that no pixel changes."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    encoded = []
    for image in part if isinstance(part, list) else [part]:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    if isinstance(part, list):
        return {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(encoded)}}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded[0]}"}}


@pytest.mark.parametrize("case", ["clip", "clip between images"])
@pytest.mark.parametrize("name", KITS)
def test_clips_over_http_are_answered_as_by_transformers(kits, noise, name, case):
    made = kits(name)
    parts = made.kit.PROMPTS[case](noise)
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": list(map(wire_part, parts))}],
        "temperature": 0,
        "max_tokens": 8,
        "logprobs": True,
    }
    settings = Settings(model=str(made.path), served_model_name="tiny", threads=1, clip_model="none")
    with TestClient(create_app(settings)) as client:
        whole = client.post("/v1/chat/completions", json=body).json()
        pruned = client.post("/v1/chat/completions", json={**body, "vision_pruning": {"keep_tokens": 6}}).json()
    inputs = made.kit.inputs_of(made.model, made.tokenizer, parts)
    tokens = [entry["token"] for entry in whole["choices"][0]["logprobs"]["content"]]
    assert tokens == shown(made.tokenizer, generate(made.model, inputs, 8)[0])
    assert whole["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]
    layouts = [image.layout for image in encode(made.adapter, parts)]
    told = [(image["total"], image["kept"]) for image in pruned["vision_pruning"]["images"]]
    assert told == [(layout.total, layout.kept(6)) for layout in layouts]
    dropped = sum(layout.total - layout.kept(6) for layout in layouts)
    assert whole["usage"]["prompt_tokens"] - pruned["usage"]["prompt_tokens"] == dropped > 0
