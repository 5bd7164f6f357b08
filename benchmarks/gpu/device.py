"""The device that is measured, and what there is to say of it beside figures."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


def described() -> str:
    """The machine as a paragraph: GPU, driver, clocks, versions and the time."""
    packages = ("torch", "triton", "transformers", "numba", "numpy")
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if INTERPRETED:
        where = "Triton's interpreter on a CPU, tiny sizes. The figures mean nothing"
    else:
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {_driver()}"
    return f"{where}. Python {platform.python_version()}, {versions}. {when}."


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _driver() -> str:
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,memory.total"
    try:
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi says nothing ({type(error).__name__})"
    driver, clock, most, memory, power, total = printed.splitlines()[0].split(", ")
    return f"driver {driver}, SM clock {clock} of {most} before the run, memory clock {memory}, {power}, {total}"
