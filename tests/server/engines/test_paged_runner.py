"""OpenVINO runs the language model as transformers does, token for token, or refuses to."""

import asyncio
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from covervlm.server.core.generation import GenerationRequest, Message, PruningPolicy, SamplingParams
from covervlm.server.demo import model_path
from covervlm.server.engines import registry
from covervlm.server.engines.embedded import openvino_model
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.engines.embedded.kv_blocks import KVBlocks
from covervlm.server.engines.embedded.model_runner import ModelRunner
from covervlm.server.engines.embedded.openvino_model import unsuited
from covervlm.server.engines.embedded.paged_runner import PagedRunner, load_paged
from covervlm.server.engines.embedded.prefix_cache import Prefix
from covervlm.server.engines.registry import build_engine
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.settings import Settings, SettingsError
from tests.server.conftest import image_part
from tests.server.models.tiny_internvl import save_tiny_internvl
from tests.server.models.tiny_llava import save_tiny_llava_next
from tests.server.models.tiny_onevision import save_tiny_onevision
from tests.server.models.tiny_qwen import save_tiny_qwen
from tests.server.models.tiny_qwen3 import save_tiny_qwen3

pytest.importorskip("openvino")

CHECKPOINTS = {
    "demo": None,
    "llava_next": save_tiny_llava_next,
    "llava_onevision": save_tiny_onevision,
    "internvl": save_tiny_internvl,
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def path(request, tmp_path_factory):
    if CHECKPOINTS[request.param] is None:
        return str(model_path())
    folder = tmp_path_factory.mktemp(request.param)
    CHECKPOINTS[request.param](folder)
    return str(folder)


@pytest.fixture(scope="module")
def runners(path):
    plain, other = (load_adapter(Checkpoint(path, "cpu", "float32")) for _ in range(2))
    return ModelRunner(plain), load_paged(other)


def prompt(runner, length, start=0):
    ids = torch.randint(5, 90, (start + length,), generator=torch.Generator().manual_seed(length))[start:]
    return runner._adapter.embeddings(ids), torch.arange(start, start + length)[None]


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


@torch.inference_mode()
def test_prompts_steps_and_what_is_kept_of_them_are_those_of_transformers(runners):
    """Prompts of different lengths together, one of them for two answers, over several blocks."""
    got = []
    for runner in runners:
        logits, states = runner.prefill([prompt(runner, n) for n in (5, 70, 33)], [1, 2, 1], states=True)
        positions, steps = [5, 70, 70, 33], []
        for step in range(40):
            steps.append(runner.decode([5 + (7 * step + row) % 80 for row in range(4)], positions))
            positions = [position + 1 for position in positions]
        kept = runner.read(2)
        runner.keep([3, 1])
        steps.append(runner.decode([9, 8], [positions[3], positions[1]]))
        got.append((logits, *states, *steps, *(side for layer in kept for side in layer)))
        runner.keep([])
    for one, other in zip(*got, strict=True):
        close(one, other)


@torch.inference_mode()
def test_a_prompt_goes_on_from_what_was_read_before(runners):
    plain, paged = runners
    expected, _ = plain.prefill([prompt(plain, 90)], [1])
    paged.prefill([prompt(paged, 90)], [1])
    prefix = Prefix(50, paged.read(0))
    embeddings, positions = prompt(paged, 90)
    logits, _ = paged.prefill([(embeddings[50:], positions[:, 50:])], [3], prefix)
    close(logits, expected)
    following = paged.decode([7, 7, 7, 7], [90] * 4)
    close(following, plain.decode([7], [90]).expand(4, -1))
    for runner in runners:
        runner.keep([])


@torch.inference_mode()
def test_a_text_in_pieces_beside_a_running_batch_leaves_no_trace(runners):
    for runner in runners:
        runner.prefill([prompt(runner, 20)], [1])
    states = []
    for runner in runners:
        embeddings, positions = prompt(runner, 80)
        with runner.text() as text:
            pieces = [runner.read_on(text, embeddings[at : at + 30], positions[:, at : at + 30]) for at in (0, 30, 60)]
        states.append(torch.cat(pieces))
        runner.probe()
    close(*states)
    close(*(runner.decode([9], [20]) for runner in runners))
    for runner in runners:
        runner.keep([])
    assert runners[1]._blocks.nbytes == KVBlocks(runners[1]._blocks._shapes).nbytes


@torch.inference_mode()
def test_what_others_left_in_blocks_is_not_read(runners):
    _, paged = runners
    paged.prefill([prompt(paged, 100)], [8])
    paged.keep([0])
    paged.prefill([prompt(paged, 5)], [1])
    expected = paged.decode([7, 7], [100, 5])
    paged.keep([])
    paged.prefill([prompt(paged, 100)], [8])
    paged.keep([0])
    free = paged._blocks._free
    for side in paged._blocks.sides:
        side[free] = torch.nan
    paged.prefill([prompt(paged, 5)], [1])
    close(paged.decode([7, 7], [100, 5]), expected)
    paged.keep([])


@torch.inference_mode()
def test_a_pass_that_fails_leaves_no_rows(runners, monkeypatch):
    _, paged = runners
    monkeypatch.setattr(paged, "_logits", lambda hidden: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        paged.prefill([prompt(paged, 50)], [2])
    assert not paged._rows
    assert not paged._blocks._rows
    monkeypatch.undo()
    paged.prefill([prompt(paged, 50)], [1])
    paged.reset()
    assert not paged._blocks._rows


async def answers(path, runtime, requests):
    engine = TransformersEngine(TransformersEngineConfig(path, threads=1, runtime=runtime))
    await engine.start()

    async def one(request):
        texts = {}
        async for chunk in engine.generate(request):
            texts.setdefault(chunk.index, []).extend(chunk.token_ids)
        return texts

    try:
        return await asyncio.gather(*map(one, requests))
    finally:
        await engine.stop()


async def test_answers_together_are_those_of_transformers_token_for_token(path, scene):
    requests = [
        GenerationRequest(
            str(number),
            (Message("user", (image_part(scene(number)), "Describe the image.")),),
            SamplingParams(max_tokens=24, logprobs=True, **sampling),
            PruningPolicy(**pruning),
        )
        for number, (pruning, sampling) in enumerate(
            [
                ({"method": "none"}, {"temperature": 0.0}),
                ({"keep_tokens": 16}, {"temperature": 0.0, "prompt_logprobs": 1}),
                ({"keep_tokens": 5}, {"n": 3, "temperature": 1.0, "seed": 7}),
                ({"keep_tokens": 16, "method": "divprune"}, {"temperature": 0.7, "seed": 1, "top_p": 0.9}),
                ({"keep_tokens": 16, "method": "divprune"}, {"temperature": 0.0}),
            ]
        )
    ]
    expected = await answers(path, "torch", requests)
    assert [len(choices) for choices in expected] == [1, 1, 3, 1, 1]
    assert all(tokens for choices in expected for tokens in choices.values())
    assert await answers(path, "openvino", requests) == expected


def test_transformers_layers_are_let_go(path):
    adapter = load_adapter(Checkpoint(path, "cpu", "float32"))
    load_paged(adapter)
    assert {weight.device.type for weight in adapter.language_model.layers.parameters()} == {"meta"}
    assert adapter.embeddings.weight.device.type == "cpu"
    assert all(weight.device.type == "cpu" for weight in adapter.model.lm_head.parameters())


@pytest.mark.parametrize(("save", "axes"), [(save_tiny_qwen, 3), (save_tiny_qwen3, 3)])
async def test_a_model_with_positions_of_several_axes_is_refused_with_the_reason(tmp_path, save, axes):
    save(tmp_path)
    engine = TransformersEngine(TransformersEngineConfig(str(tmp_path), threads=1, runtime="openvino"))
    with pytest.raises(ValueError, match=f"--runtime openvino cannot run this model: its positions have {axes} axes"):
        await engine.start()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "some of its layers read a part of the text only"),
        ({"rope_parameters": {"rope_type": "longrope"}}, r"positions change with the text's length \(longrope\)"),
        ({"_attn_implementation": "eager"}, "some of its layers read a part of the text only"),
    ],
)
def test_what_openvino_would_do_otherwise_is_refused_with_the_reason(monkeypatch, change, reason):
    adapter = load_adapter(Checkpoint(str(model_path()), "cpu", "float32"))
    for name, value in change.items():
        monkeypatch.setattr(adapter.language_model.config, name, value, raising=False)
    with pytest.raises(ValueError, match=reason):
        openvino_model.compile_model(adapter)


def test_openvino_reports_to_nobody_that_it_is_used():
    """What reports is imported with it, where it is installed."""
    script = (
        "import sys; from covervlm.server.engines.embedded.paged_runner import load_paged\n"
        "from covervlm.server.models.checkpoint import Checkpoint, load_adapter\n"
        f"load_paged(load_adapter(Checkpoint({str(model_path())!r}, 'cpu', 'float32')))\n"
        "assert 'openvino.tools.ovc' in sys.modules\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_half_precision_is_refused():
    assert "bfloat16 on cpu" in unsuited(load_adapter(Checkpoint(str(model_path()), dtype="bfloat16")))


def test_a_compiled_model_that_computes_something_else_is_refused(monkeypatch):
    adapter = load_adapter(Checkpoint(str(model_path()), "cpu", "float32"))
    honest = PagedRunner.read_on
    monkeypatch.setattr(PagedRunner, "read_on", lambda *given: 1.01 * honest(*given))
    with pytest.raises(ValueError, match=r"its hidden states differ by .* from transformers'; leave the option out"):
        load_paged(adapter)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "cuda"}, "float32 on a CPU, not for --device cuda"),
        ({"dtype": "bfloat16"}, "float32 on a CPU, not for --device auto, --dtype bfloat16"),
        ({"quantization": "int8"}, "and --quantization int8"),
    ],
)
def test_options_that_exclude_it_are_refused_before_loading(options, reason):
    with pytest.raises(SettingsError, match=f"runtime: openvino is for .*{reason}"):
        build_engine(Settings(engine="transformers", runtime="openvino", **options))


def test_without_openvino_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    with pytest.raises(SettingsError, match=r"install covervlm\[openvino\]"):
        build_engine(Settings(engine="transformers", runtime="openvino"))


def test_it_is_nothing_for_vllm():
    with pytest.raises(SettingsError, match="runtime: openvino is for --engine transformers on a CPU"):
        registry._vllm_config(None, Settings(engine="vllm", runtime="openvino"))
