"""`covervlm serve --engine vllm` as a process: options reach vLLM, and nothing is left when it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from chat_bodies import body

COVERVLM = Path(sys.executable).with_name("covervlm")


@pytest.fixture(scope="module")
def server():
    """The process and its URL. vLLM is told of a context that an unpruned image with 200 tokens of answer exceeds."""
    command = [COVERVLM, "serve", "--engine", "vllm", "--port", "0", "--log-level", "warning"]
    command += ["--vllm-args=--enforce-eager --max-model-len 700"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        lines = (line for line in process.stdout if line.startswith("covervlm serves "))
        yield process, next(lines).rpartition(" ")[2].strip()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_options_of_vllm_reach_it(server):
    with httpx.Client(base_url=server[1], timeout=60) as client:
        whole = client.post("/v1/chat/completions", json=body([1], max_tokens=200))
        pruned = client.post("/v1/chat/completions", json=body([1], max_tokens=200) | {"model": "demo:64"})
    assert whole.status_code == 400
    assert "context is 700 tokens" in whole.json()["error"]["message"]
    assert pruned.status_code == 200
    assert pruned.json()["vision_pruning"]["images"][0]["kept"] == 64


def test_sigterm_ends_it_and_its_workers(server):
    process, _ = server
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    deadline = time.monotonic() + 60  # Python's resource tracker ends once it finds its pipe closed, a moment later
    while left := [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and in_session(pid, process.pid)]:
        assert time.monotonic() < deadline, [(pid / "cmdline").read_bytes() for pid in left]
        time.sleep(0.05)


def in_session(pid: Path, session: int) -> bool:
    """Whether a process belongs to a session and is more than an entry that nobody has collected."""
    try:
        state, _, _, of = (pid / "stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return False
    return int(of) == session and state != "Z"
