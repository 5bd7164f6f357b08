"""Whoever prunes nothing gets what vLLM without the plugin gives, about images that are resized alike."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from chat_bodies import QUESTIONS, SEED
from demo_model.scenes import make_scene
from safetensors.torch import load_file, save_file
from vllm import SamplingParams

CLIP_TOWERS = {"clip_vision_model", "siglip_vision_model"}
SCENES = [(11, None), (12, (90, 60)), (13, (40, 120))]


def image(number, size):
    scene = make_scene(SEED + number).image
    return scene if size is None else scene.resize(size)


@pytest.fixture(scope="session")
def stock(checkpoints, tmp_path_factory):
    """Prompts of every checkpoint with the answers of stock vLLM."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("scenes")
    asked, copies = {}, {}
    for name, path in checkpoints.items():
        tokenizer = AutoTokenizer.from_pretrained(path)
        qwen = dict.fromkeys(("qwen2_5_vl", "qwen3_vl"), "<|image_pad|>")
        mark = {**qwen, "internvl": "<IMG_CONTEXT>"}.get(name, "<image>")
        asked[str(path)] = []
        copies[str(path)] = as_vllm_reads_it(path, folder / name)
        for number, size in SCENES:
            file = folder / f"{number}.png"
            image(number, size).save(file)
            for question in QUESTIONS[:2]:
                ids = tokenizer(f"{mark} {question}").input_ids
                asked[str(path)].append((ids, str(file)))
    reading, writing = os.pipe()
    environment = os.environ | {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    script = Path(__file__).with_name("stock_answers.py")
    command = f'exec "{sys.executable}" "{script}" 3>&{writing}'
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=[writing],
        )
        os.close(writing)
        process.stdin.write(json.dumps({copies[path]: requests for path, requests in asked.items()}).encode())
        process.stdin.close()
        with os.fdopen(reading) as result:
            written = result.read()
        assert process.wait() == 0, (folder / "log").read_text()[-4000:]
    answers = json.loads(written)
    return asked, {path: answers[copy] for path, copy in copies.items()}


def as_vllm_reads_it(checkpoint: Path, copy: Path) -> str:
    """The same weights under names that stock vLLM knows, which are not those of transformers 5.19 for CLIP towers."""
    shutil.copytree(checkpoint, copy)
    if json.loads((copy / "config.json").read_text())["vision_config"]["model_type"] not in CLIP_TOWERS:
        return str(copy)
    weights = copy / "model.safetensors"
    shortened = re.compile(r"vision_tower\.(?=(embeddings|encoder|pre_layrnorm|post_layernorm)\.)")
    tensors = {shortened.sub("vision_tower.vision_model.", name): part for name, part in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    return str(copy)


async def test_unpruned_answers_are_those_of_stock_vllm_token_by_token(engines, stock):
    asked, answers = stock
    tokenizer = engines.vllm._llm.renderer.get_tokenizer()
    for (ids, file), wanted in zip(asked[str(engines.checkpoint)], answers[str(engines.checkpoint)], strict=True):
        got = await generate(engines.vllm, ids, file, {"method": "none"})
        assert [tokenizer.decode([token]) for token, _ in got] == [token for token, _ in wanted]
        # Sums may come in another order where the prefix is cached; log probabilities of other tokens lie far off.
        assert [value for _, value in got] == pytest.approx([value for _, value in wanted], abs=1e-4)


async def test_a_budget_of_all_tokens_is_the_unpruned_request(engines, stock):
    """The very same one: vLLM finds the image and its prefix in its caches."""
    asked, _ = stock
    ids, file = asked[str(engines.checkpoint)][0]
    whole = await generate(engines.vllm, ids, file, {"method": "none"})
    assert await generate(engines.vllm, ids, file, {"keep_tokens": 100_000}) == whole


async def generate(engine, ids, file, option):
    from PIL import Image

    prompt = {
        "prompt_token_ids": ids,
        "multi_modal_data": {"image": Image.open(file)},
        "mm_processor_kwargs": {"vision_prune": option},
    }
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=0)
    numbers = engine._numbers
    async for output in engine._llm.generate(prompt, params, f"stock-{next(numbers)}"):
        final = output.outputs[0]
    return [(token, step[token].logprob) for token, step in zip(final.token_ids, final.logprobs, strict=True)]
