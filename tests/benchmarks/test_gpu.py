"""The GPU benchmark without a GPU: every part runs in Triton's interpreter, and a part that fails stops no other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu.parts import Part, parts, run
from gpu.random_models import random_adapter
from gpu.sizes import FULL, TINY
from gpu.table import Table

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu"

pytestmark = pytest.mark.long


@pytest.mark.timeout(900)
def test_every_part_passes_in_the_interpreter_and_the_page_says_that_its_figures_mean_nothing(tmp_path):
    page = tmp_path / "gpu.md"
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), "--out", str(page)], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, timeout=900
    )
    text = page.read_text()
    assert ran.returncode == 0, text
    assert "The figures mean nothing" in text
    assert re.findall("^## (.*)$", text, re.MULTILINE) == [part.title for part in parts(TINY)]
    assert len(re.findall("^[|] ---", text, re.MULTILINE)) == len(parts(TINY))
    assert "Failed:" not in text


def test_a_part_that_fails_or_runs_out_of_time_is_reported_with_its_error():
    failed = run(Part("unknown", "gpu.served", 60, ("no such model",)), TINY, seconds=200)
    assert (failed.table, failed.error) == (None, "KeyError: 'no such model'")
    late = run(Part("late", "gpu.picks", 60), TINY, seconds=0.05)
    assert (late.table, late.error) == (None, "not done after 0 s")
    assert isinstance(run(Part("vLLM", "gpu.vllm_engine", 60), TINY, seconds=200).table, Table)


@pytest.mark.parametrize(
    ("part", "language", "tower"), [("7b", 6.74, 0.304), ("13b", 13.02, 0.304), ("next-13b", 13.02, 0.304)]
)
def test_models_have_the_size_of_those_they_are_named_for(part, language, tower):
    """Billions of parameters, of Vicuna and of CLIP ViT-L/14."""
    model = random_adapter(FULL.servings[part].shape, torch.device("meta")).model
    counted = [model.model.language_model, model.lm_head], [model.model.vision_tower]
    sizes = [sum(weight.numel() for module in modules for weight in module.parameters()) / 1e9 for modules in counted]
    assert sizes == pytest.approx([language, tower], rel=2e-3)


def test_a_gpu_gets_the_same_parts_at_full_size():
    """No more than the interpreter has tried, but for the 13B models beside the 7B ones."""
    assert {part.module for part in parts(FULL)} == {part.module for part in parts(TINY)}
