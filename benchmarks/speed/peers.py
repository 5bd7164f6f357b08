"""Other servers of the same model, on a free loopback port: transformers' own `transformers serve`, and plain vLLM."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

START_SECONDS = 300
TORCHVISION_CURE = Path(__file__).resolve().parents[2] / "tests" / "vllm" / "torchvision_cure"
_CORES = os.cpu_count() or 1
VLLM_ON_ALL_CORES = {
    "PYTHONPATH": str(TORCHVISION_CURE),
    "VLLM_NO_USAGE_STATS": "1",
    # vLLM would keep one of the cores for its front end.
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{_CORES - 1}" if _CORES > 1 else "0",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}
"""What vLLM's CPU build needs to compute on every core."""


@contextmanager
def transformers_serve(python: Path, model: Path) -> Iterator[str]:
    """`transformers serve` of the environment of `python`; gives the URL. Clients call the model by its folder."""
    command = [str(python.with_name("transformers")), "serve", str(model), "--device", "cpu", "--dtype", "float32"]
    with _served(command, {}) as url:
        yield url


@contextmanager
def vllm_serve(python: Path, model: Path, name: str) -> Iterator[str]:
    """Plain vLLM without our plugin, of the environment of `python`, on its CPU build."""
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", name, "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    environment = VLLM_ON_ALL_CORES | {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_PLUGINS": ""}
    with _served(command, environment) as url:
        yield url


@contextmanager
def _served(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    port = _free_port()
    options = ["--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _await_health(url, process, command)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _free_port() -> int:
    """A port that was free a moment ago, since neither server can choose a free one itself and report it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _await_health(url: str, process: subprocess.Popen[bytes], command: Sequence[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit(f"the server did not start: {' '.join(command)}")
