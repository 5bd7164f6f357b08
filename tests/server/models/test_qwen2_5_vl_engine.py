"""The engine with a Qwen2.5-VL checkpoint: stills and clips, pruned and not, alone and together."""

import asyncio
import base64
import io
from dataclasses import replace
from itertools import cycle

import pytest
import pytest_asyncio
import torch
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import GenerationRequest, PruningPolicy, SamplingParams
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.settings import Settings
from tests.server.media.video_files import LOSSLESS, encoded, video_url
from tests.server.models.plain_generate import generate
from tests.server.models.tiny_qwen import PROMPTS, QUESTION, chat, transformers_inputs


@pytest_asyncio.fixture
async def engine(tiny_qwen):
    engine = TransformersEngine(TransformersEngineConfig(str(tiny_qwen), threads=1))
    await engine.start()
    yield engine
    await engine.stop()


def request(parts, pruning=None) -> GenerationRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=10, logprobs=True)
    return GenerationRequest("test", chat(*parts), sampling, PruningPolicy(**pruning or {}))


def shown(tokenizer, ids) -> list[str]:
    return [text for token in ids if (text := tokenizer.decode([token], skip_special_tokens=True))]


@pytest.mark.parametrize("case", PROMPTS)
async def test_the_engine_answers_as_transformers_does(engine, plain_qwen, qwen_tokenizer, answer, noise, case):
    parts = PROMPTS[case](noise)
    inputs = transformers_inputs(qwen_tokenizer, parts)
    expected, _ = generate(plain_qwen, inputs, 10)
    got = await answer(engine, request(parts))
    assert got.prompt.prompt_tokens == inputs["input_ids"].shape[1]
    assert got.choices[0].tokens == shown(qwen_tokenizer, expected)


@pytest.mark.parametrize("case", PROMPTS)
async def test_the_engine_scores_a_prompt_as_transformers_does(engine, plain_qwen, qwen_tokenizer, answer, noise, case):
    parts = PROMPTS[case](noise)
    inputs = transformers_inputs(qwen_tokenizer, parts)
    ids = inputs["input_ids"][0].tolist()
    with torch.inference_mode():
        expected = plain_qwen(**inputs).logits[0].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    asked = request(parts)
    got = await answer(engine, replace(asked, sampling=replace(asked.sampling, prompt_logprobs=0)))
    assert list(got.prompt.token_ids) == ids
    assert [entry.logprob for entry in got.prompt.logprobs[1:]] == pytest.approx(expected.tolist(), abs=2e-4)


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
def test_a_clip_over_http_is_answered_as_by_transformers(tiny_qwen, plain_qwen, qwen_tokenizer, noise, fps):
    frames = [noise(84, 56, seed=i) for i in range(4)]
    encoded = []
    for frame in frames:
        buffer = io.BytesIO()
        frame.save(buffer, "PNG")
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    video = {"url": "data:video/jpeg;base64," + ",".join(encoded), "fps": fps}
    content = [{"type": "video_url", "video_url": video}, {"type": "text", "text": QUESTION}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 10}
    settings = Settings(model=str(tiny_qwen), served_model_name="tiny", threads=1, clip_model="none")
    with TestClient(create_app(settings)) as client:
        whole = client.post("/v1/chat/completions", json={**body, "logprobs": True}).json()
        pruned = client.post("/v1/chat/completions", json={**body, "vision_pruning": {"keep_tokens": 4}}).json()
    inputs = transformers_inputs(qwen_tokenizer, (frames, QUESTION), fps or 2.0)
    expected, _ = generate(plain_qwen, inputs, 10)
    tokens = [entry["token"] for entry in whole["choices"][0]["logprobs"]["content"]]
    assert tokens == shown(qwen_tokenizer, expected)
    assert whole["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]
    assert [(image["total"], image["kept"]) for image in pruned["vision_pruning"]["images"]] == [(12, 4)]


@pytest.mark.parametrize(("asked", "kept"), [({}, range(6)), ({"fps": 12.5}, (0, 2, 5))])
def test_a_video_file_over_http_is_answered_as_its_frames_by_transformers(
    tiny_qwen, plain_qwen, qwen_tokenizer, noise, asked, kept
):
    frames = [noise(84, 56, seed=i) for i in range(6)]
    video = {"url": video_url(encoded(frames, gop=3, **LOSSLESS)), **asked}
    content = [{"type": "video_url", "video_url": video}, {"type": "text", "text": QUESTION}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 10}
    settings = Settings(model=str(tiny_qwen), served_model_name="tiny", threads=1, clip_model="none")
    with TestClient(create_app(settings)) as client:
        got = client.post("/v1/chat/completions", json={**body, "logprobs": True}).json()
    rate = (len(kept) - 1) * 25 / 5  # 0.2 s between the first frame and the last
    inputs = transformers_inputs(qwen_tokenizer, ([frames[i] for i in kept], QUESTION), rate)
    expected, _ = generate(plain_qwen, inputs, 10)
    assert [entry["token"] for entry in got["choices"][0]["logprobs"]["content"]] == shown(qwen_tokenizer, expected)
    assert got["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]
