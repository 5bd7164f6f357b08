"""Uploaded files of tensors: pickles, headers that promise too much, and files as large as a body may be."""

import asyncio
import io
import json
import struct

import numpy as np

from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.bodies import CLASSES
from tests.e2e.attack.registry import REFUSED, attack

EMBEDDINGS = "/v1/embeddings/uploads"
CLASSIFIER = "/v1/classifiers/hostile/file"
MIB = 2**20


async def everywhere(attacker: Attacker, data: bytes) -> None:
    """To every route that takes a file."""
    body = {"classes": CLASSES, "horizon": 9}
    session = (await attacker.post("/v1/streams", body, counted=False)).json()["id"]
    snapshot = f"/v1/streams/{session}/snapshot"
    try:
        for method, path in (("POST", EMBEDDINGS), ("PUT", CLASSIFIER), ("PUT", snapshot)):
            await attacker.request(method, path, data)
    finally:
        await attacker.request("DELETE", f"/v1/streams/{session}", counted=False)


@attack("files of pickles, and of headers that lie", answers=frozenset({400}), once=True, limit=60)
async def hostile_files(attacker: Attacker) -> None:
    from tests.server.api.test_hostile_bodies import HOSTILE_FILES

    for data in HOSTILE_FILES.values():
        await everywhere(attacker, data)


def named(count: int) -> bytes:
    """A safetensors file of that many tensors without elements."""
    header = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@attack("a file of 500,000 empty tensors", make=lambda: named(500_000))
async def many_tensors(attacker: Attacker) -> None:
    await everywhere(attacker, named(500_000))


@attack("a file with 30 MiB of empty lists in its metadata")
async def large_metadata(attacker: Attacker) -> None:
    about = '{"classes": [' + "[]," * (10 * MIB) + "[]]}"
    header = json.dumps({"__metadata__": {"covervlm": about}}).encode()
    await everywhere(attacker, struct.pack("<Q", len(header)) + header)


@attack("60 MiB of float64 embeddings, from four callers at once")
async def large_arrays(attacker: Attacker) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((60 * MIB // 8 // 64, 64)))
    await asyncio.gather(*(attacker.post(EMBEDDINGS, file.getvalue()) for _ in range(4)))


@attack("60 MiB of base64 embeddings to learn from", answers=REFUSED | {202})
async def large_base64(attacker: Attacker) -> None:
    body = f'{{"name": "b", "classes": ["a", "b"], "embeddings": "{"A" * (60 * MIB)}"}}'.encode()
    await attacker.post("/v1/classifiers", body)
