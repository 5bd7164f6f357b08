"""A type checker sees through the methods: what they return, and which arguments they do not have."""

import subprocess
import sys
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parents[2] / "clients"

PROGRAM = """
import asyncio
from typing import assert_type
from covervlm.clients import AsyncClient, AsyncStream, ChatAnswer, Classification, Client, Clustering, Embeddings, Job
from covervlm.clients import ImageStream, Stream

client = Client()
assert_type(client.chat("a.png", "What?", keep_tokens=4), ChatAnswer)
assert_type(client.stream(None, "What?", schema=int), Stream)
assert_type(client.chat_messages([], schema={"type": "object"}), ChatAnswer)
assert_type(client.classify(["a.png"], ["a", "b"]), list[Classification])
job = client.cluster(["a.png", b"png"], "color")
assert_type(job, Job[Clustering])
assert_type(client.jobs.wait(job), Clustering)
assert_type(client.jobs.wait(client.classifiers.fit("mine", ["a"], "a.png")), str)
assert_type(client.streams.snapshot("id"), bytes)

async def main() -> None:
    client = AsyncClient()
    task = asyncio.create_task(client.embed_texts("a star"))
    assert_type(await task, Embeddings)
    assert_type(await client.jobs.wait(await client.cluster(["a.png"], "color")), Clustering)
    assert_type(client.stream(None, "What?", keep_tokens=[4]), AsyncStream)
    assert_type(await client.classifiers.fit("mine", ["a"], "a.png"), Job[str])
    assert_type(await client.streams.restore("id", b"state"), ImageStream)
"""


@pytest.fixture
def check(tmp_path):
    """check(program): mypy's exit status and what it says."""
    (tmp_path / "stubs" / "covervlm").mkdir(parents=True)
    (tmp_path / "stubs" / "covervlm" / "clients").symlink_to(CLIENTS)

    def check(program):
        (tmp_path / "program.py").write_text(program)
        (tmp_path / "mypy.ini").write_text(
            "[mypy]\nmypy_path = stubs\nnamespace_packages = True\nexplicit_package_bases = True\n"
            "ignore_missing_imports = True\ncheck_untyped_defs = True\n"
        )
        command = [sys.executable, "-m", "mypy", "program.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
        return done.returncode, done.stdout

    return check


@pytest.mark.long
def test_results_have_their_types_and_unknown_arguments_are_errors(check):
    assert check(PROGRAM) == (0, "Success: no issues found in 1 source file\n")
    status, said = check(
        f'{PROGRAM}\nclient.classify("a.png", clases=["a"])\nclient.chat("a.png", "?", keep_token=3)\n'
    )
    assert status == 1
    assert 'Unexpected keyword argument "clases"' in said
    assert 'Unexpected keyword argument "keep_token"' in said
    assert "Found 2 errors" in said
