"""The data folder: databases that are empty or old, damaged files, quotas in a rush, and who may read it."""

import asyncio
import contextlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save

from tests.e2e.attack import images
from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.attacks.jobs import finished
from tests.e2e.attack.bodies import CLASSES, classify
from tests.e2e.attack.registry import REFUSED, attack
from tests.e2e.attack.served import Server
from tests.e2e.attack.target import ATTACKER, STRICT

SESSIONS = "/v1/streams"
CLASSIFIERS = "/v1/classifiers"
SESSION = {"classes": CLASSES, "horizon": 9}
DATABASE = "covervlm.sqlite3"
STORED = REFUSED | {200, 201, 202, 404, 409, 507}


@contextlib.contextmanager
def earlier(folder: Path) -> Iterator[Server]:
    """A server that used the folder before."""
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop()


def kept_sessions(server: Server, number: int) -> None:
    for _ in range(number):
        status, _ = server.ask("POST", SESSIONS, SESSION, key=ATTACKER)
        assert status == 201


def files(folder: Path) -> Counter[bytes]:
    """Contents of what is no database, wherever in the folder it lies."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(DATABASE)]
    return Counter(path.read_bytes() for path in found)


def remember(folder: Path) -> None:
    """Copy the files of sessions, beside the folder."""
    shutil.copytree(folder / "blobs", folder.with_name(f"{folder.name}-before"))


def check_nothing_lost(attacker: Attacker) -> None:
    folder = attacker.target.folder
    before = files(folder.with_name(f"{folder.name}-before"))
    if lost := (before - files(folder)).total():
        attacker.complain(f"{lost} of {before.total()} files that the catalogue did not name are gone")


def empty_database(folder: Path) -> None:
    with earlier(folder) as server:
        kept_sessions(server, 3)
    remember(folder)
    (folder / DATABASE).write_bytes(b"")


@attack("a database of 0 bytes beside files of sessions", once=True, answers=STORED, prepare=empty_database)
async def zero_bytes(attacker: Attacker) -> None:
    check_nothing_lost(attacker)
    await attacker.post(SESSIONS, SESSION)


def older_database(folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    with earlier(folder) as server:
        kept_sessions(server, 1)
    # A server that runs lets nobody else read its database.
    shutil.copy(folder / DATABASE, old)
    with earlier(folder) as server:
        kept_sessions(server, 3)
    remember(folder)
    shutil.copy(old, folder / DATABASE)


@attack("a database older than the files beside it", once=True, answers=STORED, prepare=older_database)
async def older(attacker: Attacker) -> None:
    check_nothing_lost(attacker)
    await attacker.post(SESSIONS, SESSION)


@attack("a look at the data folder by other users of the machine", once=True, answers=STORED)
async def readable(attacker: Attacker) -> None:
    for _ in range(3):
        await attacker.post(SESSIONS, SESSION)
    folder = attacker.target.folder
    for path in folder.rglob("*"):
        mode = path.stat().st_mode & 0o777
        # What lies in a folder that is closed to others is closed itself; the folder itself is the operator's.
        above = [folder, *(parent for parent in path.parents if folder in parent.parents)]
        if mode & 0o077 and all(parent.stat().st_mode & 0o077 for parent in above):
            attacker.complain(f"{path.relative_to(folder)} may be used by others: {mode:o}")


@attack(
    "thirty sessions and classifiers at once where two may be kept",
    once=True,
    answers=STORED,
    options=STRICT,
)
async def quota_race(attacker: Attacker) -> None:
    await asyncio.gather(*(attacker.post(SESSIONS, SESSION) for _ in range(30)))
    started = {"classes": CLASSES, "images": [images.tiny_png()], "parameters": {"iterations": 1}}
    first = await attacker.post(CLASSIFIERS, {**started, "name": "first"})
    await finished(attacker, first.json()["id"])
    good = (await attacker.request("GET", f"{CLASSIFIERS}/first/file", counted=False)).body
    assert good
    await asyncio.gather(*(attacker.request("PUT", f"{CLASSIFIERS}/c{i}/file", good) for i in range(30)))
    for path in (SESSIONS, CLASSIFIERS):
        listed = (await attacker.request("GET", path, counted=False)).json()["data"]
        if len(listed) > 2:
            attacker.complain(f"{len(listed)} kept under {path}, where 2 may be")
        for entry in listed:
            name = entry.get("name") or entry["id"]
            await attacker.request("DELETE", f"{path}/{name}", counted=False)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "cut": lambda data: data[: len(data) // 2],
    "changed": lambda data: b"\xff" * len(data),
    "other": lambda data: save({"proxies": torch.zeros(2, 2)}),
    "gone": lambda data: None,
}
"""What becomes of a file; None for nothing."""


def damage(folder: Path) -> None:
    """A session and a classifier for each damage, whose files are not what they were."""
    changes: list[tuple[Path, Callable[[bytes], bytes | None]]] = []
    with earlier(folder) as server:
        for kind, change in DAMAGES.items():
            known = set((folder / "blobs").iterdir())
            _, answer = server.ask("POST", SESSIONS, SESSION, key=ATTACKER)
            (folder / f"session-{kind}").write_text(json.loads(answer)["id"])
            picture = images.small_jpeg()
            started = {"classes": CLASSES, "images": [picture], "parameters": {"iterations": 2}, "name": kind}
            server.ask("POST", CLASSIFIERS, started, key=ATTACKER)
            end = time.monotonic() + 60
            while server.ask("GET", f"{CLASSIFIERS}/{kind}", key=ATTACKER)[0] != 200:
                assert time.monotonic() < end, "the classifier was not learned"
                time.sleep(0.1)
            for blob in set((folder / "blobs").iterdir()) - known:
                changes.append((blob, change))
    for blob, change in changes:
        data = change(blob.read_bytes())
        blob.unlink() if data is None else blob.write_bytes(data)


def damaged(kind: str, name: str) -> None:
    @attack(name, once=True, answers=frozenset({200, 404, 500, 503, 507}), prepare=damage)
    async def send(attacker: Attacker) -> None:
        """Not the caller's fault, so no 400; and it can be deleted."""
        session = f"{SESSIONS}/{(attacker.target.folder / f'session-{kind}').read_text()}"
        classifier = f"{CLASSIFIERS}/{kind}"
        await attacker.post("/v1/classify", classify(images.small_jpeg(), classes=None, classifier=kind))
        await attacker.request("GET", f"{classifier}/file")
        await attacker.request("GET", f"{session}/snapshot")
        await attacker.post(f"{session}/observe", {"images": [images.small_jpeg()]})
        for path in (session, classifier):
            if (await attacker.request("DELETE", path)).status != 200:
                attacker.complain(f"{path} cannot be deleted")


damaged("cut", "stored files that were cut short")
damaged("changed", "stored files whose bytes are others")
damaged("other", "stored files that hold other tensors")
damaged("gone", "stored files that are gone")
