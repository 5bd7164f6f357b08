"""Reference outputs for the zero-shot methods, and our results under the vector width they were computed with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[2] / "golden" / "zero_shot"

# The methods amplify rounding: a step size is halved when a norm that is constant up to rounding grows, and the online
# update steps far at first. The references come from 256-bit vector code, so they are reproduced with 256-bit code.
REPRODUCE = """
import sys, numpy as np, torch
from covervlm.server.clip.inmap import fit_vision_proxies, sinkhorn_labels
from covervlm.server.clip.onzeta import OnlineZeroShot

torch.set_num_threads(1)
golden, ours = np.load(sys.argv[1]), {}
for case in range(3):
    features, text = (torch.from_numpy(golden[f"{case}.{name}"]) for name in ("features", "text_proxy"))
    for gamma in (0.0, 0.5):
        ours[f"{case}.sinkhorn_gamma{gamma}"] = sinkhorn_labels(features @ text, gamma=gamma)
        ours[f"{case}.inmap_gamma{gamma}"] = fit_vision_proxies(features, text, gamma=gamma)
    ours[f"{case}.inmap_nosinkhorn"] = fit_vision_proxies(features, text, sinkhorn=False)
    stream = OnlineZeroShot(text, len(features))
    answers = [stream.observe(features[i]) for i in golden[f"{case}.order"]]
    state = stream.snapshot()
    ours[f"{case}.onzeta_text"] = torch.stack([a.text for a in answers])
    ours[f"{case}.onzeta_combined"] = torch.stack([a.combined for a in answers])
    ours[f"{case}.onzeta_w"], ours[f"{case}.onzeta_rho"] = state.vision_proxies, state.rho
np.savez(sys.argv[2], **{name: value.numpy() for name, value in ours.items()})
"""


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN.with_suffix(".npz")))


@pytest.fixture(scope="session")
def golden_accuracy() -> list[dict]:
    return json.loads(GOLDEN.with_suffix(".json").read_text())


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory) -> dict[str, np.ndarray]:
    """Everything in the golden file that our code computes, from a process limited to 256-bit vectors."""
    out = tmp_path_factory.mktemp("reproduced") / "ours.npz"
    env = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", REPRODUCE, str(GOLDEN.with_suffix(".npz")), str(out)]
    subprocess.run(command, check=True, env=env, timeout=240)
    return dict(np.load(out))
