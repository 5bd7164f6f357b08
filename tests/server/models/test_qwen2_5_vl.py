import asyncio
import base64
import hashlib
import io
import json
from itertools import cycle

import pytest
import pytest_asyncio
import torch
from starlette.testclient import TestClient
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from covervlm.pruners import PruneInput, get_pruner
from covervlm.server import create_app
from covervlm.server.engines.base import (
    GenerationRequest,
    ImagePart,
    InvalidRequest,
    Message,
    PruningPolicy,
    SamplingParams,
    TextPart,
    VideoPart,
)
from covervlm.server.engines.transformers import TransformersEngine, TransformersEngineConfig
from covervlm.server.models.base import Kept
from covervlm.server.models.qwen2_5_vl import Qwen2_5_VLAdapter
from covervlm.server.models.registry import Checkpoint, load_adapter
from covervlm.server.settings import Settings

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIXELS = {"min_pixels": 28 * 28 * 2, "max_pixels": 28 * 28 * 64}
QUESTION = "Which color does the star have?"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights, windows of 2 x 2 merge groups, a byte-level tokenizer; laid out as hub repositories are."""
    torch.manual_seed(0)
    vocabulary = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=SPECIALS,
    )
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIALS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "initializer_range": 0.3,
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": None,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "patch_size": 14,
            "tokens_per_second": 2,
            "initializer_range": 0.3,
        },
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    folder = tmp_path_factory.mktemp("tiny-qwen")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(**PIXELS).save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def adapter(checkpoint) -> Qwen2_5_VLAdapter:
    adapter = load_adapter(Checkpoint(checkpoint))
    assert isinstance(adapter, Qwen2_5_VLAdapter)
    return adapter


@pytest.fixture(scope="module")
def plain(checkpoint):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


def test_a_checkpoint_saved_by_transformers_5_loads_the_same(checkpoint, adapter, noise, tmp_path):
    """One processor_config.json for all processors and the template in its own file."""
    for file in checkpoint.iterdir():
        if file.name not in ("preprocessor_config.json", "chat_template.json"):
            (tmp_path / file.name).symlink_to(file)
    saved = json.loads((checkpoint / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": saved, "processor_class": "Qwen2_5_VLProcessor"})
    )
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    other, image = load_adapter(Checkpoint(tmp_path)), noise(400, 300)
    assert other.tokenize(chat(image, QUESTION)) == adapter.tokenize(chat(image, QUESTION))
    assert torch.equal(other.preprocess(image)["pixel_values"], adapter.preprocess(image)["pixel_values"])


def chat(*parts) -> tuple[Message, ...]:
    def wrap(part):
        if isinstance(part, str):
            return TextPart(part)
        images = part if isinstance(part, list) else [part]
        digest = hashlib.sha256(b"".join(repr(image.size).encode() + image.tobytes() for image in images)).hexdigest()
        return VideoPart(tuple(part), digest) if isinstance(part, list) else ImagePart(part, digest)

    return (Message("user", tuple(map(wrap, parts))),)


def still(image):
    """transformers' inputs of one image: patches and grid."""
    inputs = Qwen2VLImageProcessorPil(**PIXELS)(image, return_tensors="pt")
    return inputs.pixel_values, inputs.image_grid_thw


def clip(frames):
    """Patches and grid of a clip by plain loops over its frames' own patches."""
    frames = frames + [frames[-1]] * (len(frames) % 2)
    patches = [still(frame)[0].view(-1, 3, 2, 14 * 14)[:, :, 0] for frame in frames]
    rows = []
    for first, second in zip(patches[::2], patches[1::2], strict=True):
        for p in range(len(first)):
            rows.append(torch.cat([torch.cat([first[p, c], second[p, c]]) for c in range(3)]))
    _, height, width = still(frames[0])[1][0].tolist()
    return torch.stack(rows), torch.tensor([[len(frames) // 2, height, width]])


def transformers_inputs(tokenizer, parts, fps=2.0):
    """What transformers' own processor would feed the model, put together without it: it needs torchvision."""
    text, pixels, grids = "<|im_start|>user\n", {IMAGE: [], VIDEO: []}, {IMAGE: [], VIDEO: []}
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        pad, (patches, grid) = (VIDEO, clip(part)) if isinstance(part, list) else (IMAGE, still(part))
        pixels[pad].append(patches)
        grids[pad].append(grid)
        text += "<|vision_start|>" + pad * (len(patches) // 4) + "<|vision_end|>"
    ids = torch.tensor([tokenizer(text + "<|im_end|>\n<|im_start|>assistant\n").input_ids])
    kinds = {tokenizer.convert_tokens_to_ids(IMAGE): 1, tokenizer.convert_tokens_to_ids(VIDEO): 2}
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": torch.tensor([[kinds.get(i, 0) for i in ids[0].tolist()]]),
    }
    if pixels[IMAGE]:
        inputs |= {"pixel_values": torch.cat(pixels[IMAGE]), "image_grid_thw": torch.cat(grids[IMAGE])}
    if pixels[VIDEO]:
        inputs |= {"pixel_values_videos": torch.cat(pixels[VIDEO]), "video_grid_thw": torch.cat(grids[VIDEO])}
        inputs["second_per_grid_ts"] = torch.tensor([2 / fps] * len(grids[VIDEO]))
    return inputs


@torch.inference_mode()
def generate(model, inputs, steps):
    out = model.generate(
        **inputs,
        max_new_tokens=steps,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.stack(out.logits)[:, 0]


@torch.inference_mode()
def greedy(adapter, prompt, steps):
    """Plain greedy decoding from an assembled prompt, recomputing everything at each step."""
    embeddings, positions, tokens, logits = prompt.embeddings, prompt.positions, [], []
    for step in range(steps):
        hidden = adapter.language_model(inputs_embeds=embeddings[None], position_ids=positions[:, None])
        logits.append(adapter.lm_head(hidden.last_hidden_state[0, -1]))
        tokens.append(int(logits[-1].argmax()))
        if tokens[-1] in adapter.eos_ids:
            break
        embeddings = torch.cat([embeddings, adapter.embeddings(torch.tensor(tokens[-1:]))])
        positions = torch.cat([positions, torch.full((3, 1), prompt.next_position + step)], dim=1)
    return tokens, torch.stack(logits)


def encode(adapter, parts, fps=2.0):
    inputs = [
        adapter.preprocess_video(part, fps) if isinstance(part, list) else adapter.preprocess(part)
        for part in parts
        if not isinstance(part, str)
    ]
    return adapter.encode(inputs) if inputs else []


PROMPTS = {
    "no image": lambda noise: (QUESTION,),
    "one image": lambda noise: (noise(140, 84), QUESTION),
    "odd grid": lambda noise: (noise(196, 140), QUESTION),
    "tiny image": lambda noise: (noise(1, 1), QUESTION),
    "two images": lambda noise: (noise(100, 60), "then", noise(60, 170, seed=1), QUESTION),
    "adjacent images": lambda noise: (noise(100, 60), noise(60, 170, seed=1)),
    "clip": lambda noise: ([noise(84, 56, seed=i) for i in range(6)], QUESTION),
    "odd clip": lambda noise: ([noise(84, 56, seed=i) for i in range(3)], QUESTION),
    "clip between images": lambda noise: (
        noise(56, 84),
        QUESTION,
        [noise(84, 56, seed=i) for i in range(4)],
        "and",
        noise(112, 56, seed=9),
        QUESTION,
    ),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_keeping_all_tokens_equals_transformers_generate(adapter, plain, tokenizer, noise, case):
    parts = PROMPTS[case](noise)
    inputs = transformers_inputs(tokenizer, parts)
    expected, expected_logits = generate(plain, inputs, 12)
    prompt = adapter.assemble(adapter.tokenize(chat(*parts)), [Kept(image) for image in encode(adapter, parts)])
    assert len(prompt) == inputs["input_ids"].shape[1]
    tokens, logits = greedy(adapter, prompt, 12)
    assert tokens == expected
    torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fps", [0.5, 1.0, 4.0])
def test_the_time_between_frames_reaches_the_positions(adapter, plain, tokenizer, noise, fps):
    parts = PROMPTS["clip"](noise)
    inputs = transformers_inputs(tokenizer, parts, fps)
    expected, _ = plain.model.get_rope_index(**{k: v for k, v in inputs.items() if not k.startswith("pixel")})
    prompt = adapter.assemble(adapter.tokenize(chat(*parts)), [Kept(image) for image in encode(adapter, parts, fps)])
    assert prompt.positions.tolist() == expected[:, 0].tolist()


def test_features_are_the_last_blocks_output_averaged_in_the_order_of_the_merged_tokens(adapter, plain, noise):
    """Each merge group's four rows, found in the windows' order by hand, averaged; and merged they give the token."""
    image = noise(196, 140)  # 7 x 5 merge groups, which windows of 2 x 2 do not divide
    pixels, grid = still(image)
    with torch.inference_mode():
        rows = plain.model.visual(pixels, grid_thw=grid).last_hidden_state.view(-1, 4, 32)
        merged = plain.model.visual.merger(rows.reshape(-1, 32))
    height, width = grid[0, 1] // 2, grid[0, 2] // 2
    in_windows = [
        (row, column)
        for top in range(0, height, 2)
        for left in range(0, width, 2)
        for row in range(top, min(top + 2, height))
        for column in range(left, min(left + 2, width))
    ]
    [encoded] = encode(adapter, [image])
    [region] = encoded.regions
    assert region.grid == encoded.grid == (height, width) == (5, 7)
    assert region.positions.tolist() == list(range(35))
    for place, (row, column) in enumerate(in_windows):
        raster = row * int(width) + column
        torch.testing.assert_close(region.features[raster], rows[place].mean(dim=0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoded.tokens[raster], merged[place], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", [name for name in PROMPTS if name not in ("no image", "tiny image")])
def test_pruned_output_equals_a_prompt_built_by_hand(adapter, plain, tokenizer, noise, case):
    """The unpruned prompt, of which the rows that the selection drops are deleted; positions stay."""
    parts = PROMPTS[case](noise)
    inputs = transformers_inputs(tokenizer, parts)
    images = encode(adapter, parts)
    text = adapter.question_embeddings(QUESTION)
    pruner = get_pruner("mmtok", **adapter.pruner_params)
    kept = []
    for image in images:
        regions = [PruneInput(image.tokens[r.positions], r.features, text, grid=r.grid) for r in image.regions]
        chosen = pruner.select(regions, 2)
        kept.append(torch.cat([r.positions[c] for r, c in zip(image.regions, chosen, strict=True)]))

    with torch.inference_mode():
        embeddings = plain.get_input_embeddings()(inputs["input_ids"][0]).clone()
        kinds = inputs["mm_token_type_ids"][0]
        if "pixel_values" in inputs:
            seen = plain.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
            embeddings[kinds == 1] = torch.cat(seen.pooler_output)
        if "pixel_values_videos" in inputs:
            seen = plain.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
            embeddings[kinds == 2] = torch.cat(seen.pooler_output)
        positions, _ = plain.model.get_rope_index(**{k: v for k, v in inputs.items() if not k.startswith("pixel")})
        stays = kinds == 0
        starts = [i for i in range(1, len(kinds)) if kinds[i] and not kinds[i - 1]]
        for start, places in zip(starts, kept, strict=True):
            for place in places.tolist():
                stays[start + place] = True
        by_hand, by_hand_positions = embeddings[stays], positions[:, 0, stays]
        next_position = int(positions.max()) + 1
        expected = []
        for step in range(8):
            out = plain(inputs_embeds=by_hand[None], position_ids=by_hand_positions[:, None]).logits[0, -1]
            expected.append(out)
            by_hand = torch.cat([by_hand, plain.get_input_embeddings()(out.argmax()[None])])
            by_hand_positions = torch.cat([by_hand_positions, torch.full((3, 1), next_position + step)], dim=1)

    prompt = adapter.assemble(
        adapter.tokenize(chat(*parts)), [Kept(image, places) for image, places in zip(images, kept, strict=True)]
    )
    assert len(prompt) == int(stays.sum()) < len(kinds)
    assert prompt.positions.tolist() == positions[:, 0, stays].tolist()
    assert prompt.next_position == next_position
    tokens, logits = greedy(adapter, prompt, 8)
    assert tokens == [int(out.argmax()) for out in expected[: len(tokens)]]
    torch.testing.assert_close(logits, torch.stack(expected[: len(tokens)]), atol=1e-4, rtol=1e-4)


def test_a_clip_has_one_region_for_each_pair_of_frames(adapter, noise):
    frames = [noise(84, 56, seed=i) for i in range(5)]
    [encoded] = encode(adapter, [frames])
    assert len(encoded) == 3 * 6
    assert [region.positions.tolist() for region in encoded.regions] == [
        list(range(start, start + 6)) for start in (0, 6, 12)
    ]
    assert all(region.grid == (2, 3) for region in encoded.regions)
    with torch.inference_mode():
        pixels, grid = clip(frames)
        merged = adapter.model.model.get_video_features(pixels, grid).pooler_output[0]
    torch.testing.assert_close(encoded.tokens, merged, atol=1e-5, rtol=1e-5)


def test_frames_of_a_clip_are_smaller_than_stills_may_be(adapter, noise, monkeypatch):
    monkeypatch.setattr("covervlm.server.models.qwen2_5_vl._FRAME_PIXELS", 28 * 28 * 9)
    frame = noise(400, 400)
    assert adapter.preprocess(frame)["grid"].tolist() == [1, 16, 16]
    assert adapter.preprocess_video([frame, frame], 2.0)["grid"].tolist() == [1, 6, 6]


def test_batched_encoding_equals_one_by_one(adapter, noise):
    inputs = [adapter.preprocess(noise(w, h, seed=w)) for w, h in [(100, 60), (196, 140), (28, 300)]]
    inputs.append(adapter.preprocess_video([noise(84, 56, seed=i) for i in range(4)], 2.0))
    for batched, entry in zip(adapter.encode(inputs), inputs, strict=True):
        [single] = adapter.encode([entry])
        torch.testing.assert_close(batched.tokens, single.tokens, atol=1e-5, rtol=1e-5)
        assert len(batched.regions) == len(single.regions)
        for one, other in zip(batched.regions, single.regions, strict=True):
            torch.testing.assert_close(one.features, other.features, atol=1e-5, rtol=1e-5)


def test_every_word_of_the_question_guides_the_selection(adapter, tokenizer):
    ids = tokenizer(" Question Which color does the star have", add_special_tokens=False).input_ids
    torch.testing.assert_close(adapter.question_embeddings(QUESTION), adapter.embeddings(torch.tensor(ids)))
    assert adapter.question_embeddings(" ").shape == (0, 64)


def test_this_model_has_its_own_text_temperature(adapter):
    assert adapter.pruner_params == {"tau_text": 0.01}


def test_there_is_no_cls_attention(adapter, noise):
    assert not adapter.has_cls_token
    with pytest.raises(ValueError, match="no CLS token"):
        adapter.encode([adapter.preprocess(noise(56, 56))], cls_attention=True)


@pytest.mark.parametrize("placeholder", [IMAGE, VIDEO])
def test_a_placeholder_in_a_users_text_is_refused(adapter, noise, placeholder):
    with pytest.raises(InvalidRequest, match="stands for an image or video"):
        adapter.tokenize(chat(noise(56, 56), f"what is {placeholder}?"))


def test_an_image_too_long_for_the_processor_is_the_callers_mistake(adapter, noise):
    with pytest.raises(InvalidRequest, match="aspect ratio"):
        adapter.preprocess(noise(2000, 1))


@pytest.mark.parametrize("sizes", [[], [(56, 56), (56, 84)]])
def test_frames_of_different_sizes_are_refused(adapter, noise, sizes):
    with pytest.raises(InvalidRequest, match="same size"):
        adapter.preprocess_video([noise(*size) for size in sizes], 2.0)


@pytest_asyncio.fixture
async def engine(checkpoint):
    engine = TransformersEngine(TransformersEngineConfig(str(checkpoint), threads=1))
    await engine.start()
    yield engine
    await engine.stop()


def request(parts, pruning=None) -> GenerationRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=10, logprobs=True)
    return GenerationRequest("test", chat(*parts), sampling, PruningPolicy(**pruning or {}))


@pytest.mark.parametrize("case", PROMPTS)
async def test_the_engine_answers_as_transformers_does(engine, plain, tokenizer, answer, noise, case):
    parts = PROMPTS[case](noise)
    inputs = transformers_inputs(tokenizer, parts)
    expected, _ = generate(plain, inputs, 10)
    got = await answer(engine, request(parts))
    assert got.prompt.prompt_tokens == inputs["input_ids"].shape[1]
    assert got.choices[0].tokens == [tokenizer.decode([token]) for token in expected]


async def test_no_moment_of_a_clip_is_starved(engine, answer, noise):
    frames = [noise(84, 56, seed=i) for i in range(8)]
    for method in ("mmtok", "random", "divprune"):
        policy = {"keep_tokens": 8, "method": method, "return_indices": True}
        [report] = (await answer(engine, request((frames, QUESTION), policy))).prompt.images
        assert (report.total, report.kept) == (24, 8)
        assert [sum(place // 6 == time for place in report.indices) for time in range(4)] == [2, 2, 2, 2]


async def test_methods_that_need_a_cls_token_are_refused_and_not_offered(engine, answer, noise):
    assert "cls_attention" not in engine.info.methods
    with pytest.raises(InvalidRequest, match="cls_attention needs a vision tower with a CLS token"):
        await answer(engine, request((noise(84, 56), QUESTION), {"method": "cls_attention", "keep_tokens": 2}))


async def test_sixteen_concurrent_requests_equal_their_single_answers(engine, answer, noise):
    methods = cycle(["mmtok", "vision_coverage", "text_coverage", "divprune", "cdpruner", "random", "uniform", "none"])
    budgets = cycle([{"keep_tokens": 5}, {"keep_ratio": 0.4}, {"keep_tokens": 11}])
    requests = [
        request(
            (
                [noise(84, 56, seed=j) for j in range(4)]
                if i % 5 == 3
                else noise(40 + 30 * (i % 3), 84 - 20 * (i % 2), seed=i % 4),
                f"Where is number {i}?",
            ),
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


@pytest.mark.parametrize("fps", [None, 8.0])
def test_a_clip_over_http_is_answered_as_by_transformers(checkpoint, plain, tokenizer, noise, fps):
    frames = [noise(84, 56, seed=i) for i in range(4)]
    encoded = []
    for frame in frames:
        buffer = io.BytesIO()
        frame.save(buffer, "PNG")
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    video = {"url": "data:video/jpeg;base64," + ",".join(encoded), "fps": fps}
    content = [{"type": "video_url", "video_url": video}, {"type": "text", "text": QUESTION}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 10}
    settings = Settings(model=str(checkpoint), served_model_name="tiny", threads=1, clip_model="none")
    with TestClient(create_app(settings)) as client:
        whole = client.post("/v1/chat/completions", json={**body, "logprobs": True}).json()
        pruned = client.post("/v1/chat/completions", json={**body, "vision_pruning": {"keep_tokens": 4}}).json()
    inputs = transformers_inputs(tokenizer, (frames, QUESTION), fps or 2.0)
    expected, _ = generate(plain, inputs, 10)
    tokens = [entry["token"] for entry in whole["choices"][0]["logprobs"]["content"]]
    assert tokens == [tokenizer.decode([token]) for token in expected]
    assert whole["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]
    assert [(image["total"], image["kept"]) for image in pruned["vision_pruning"]["images"]] == [(12, 4)]
