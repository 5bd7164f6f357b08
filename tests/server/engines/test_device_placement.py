"""On a GPU, every pass of the model runs there, and only logits come back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("pretended_gpu.py")


@pytest.mark.parametrize("name", ["7b", "next-13b"])
def test_tower_selection_prefill_and_decoding_stay_on_the_device_of_the_weights(name):
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[3] / "benchmarks")}
    ran = subprocess.run([sys.executable, "-P", str(PROGRAM), name], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
