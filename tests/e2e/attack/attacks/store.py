"""The data folder: databases that are empty or old, damaged files, quotas in a rush, and who may read it."""

import asyncio
import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save

from tests.e2e.attack import images
from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.attacks.jobs import finished
from tests.e2e.attack.bodies import CLASSES, classify
from tests.e2e.attack.registry import REFUSED, attack
from tests.e2e.attack.served import ATTACKER, Server

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
    folder = attacker.served.folder
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
    with earlier(folder) as server:
        kept_sessions(server, 1)
    shutil.copy(folder / DATABASE, folder.with_name(f"{folder.name}.old"))
    with earlier(folder) as server:
        kept_sessions(server, 3)
    remember(folder)
    shutil.copy(folder.with_name(f"{folder.name}.old"), folder / DATABASE)


@attack("a database older than the files beside it", once=True, answers=STORED, prepare=older_database)
async def older(attacker: Attacker) -> None:
    check_nothing_lost(attacker)
    await attacker.post(SESSIONS, SESSION)


@attack("a look at the data folder by other users of the machine", once=True, answers=STORED, alone=True)
async def readable(attacker: Attacker) -> None:
    for _ in range(3):
        await attacker.post(SESSIONS, SESSION)
    folder = attacker.served.folder
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
    options=("--key-streams", "2", "--key-classifiers", "2"),
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


def damage(folder: Path, kind: str) -> None:
    """One classifier whose file is not what it was."""
    with earlier(folder) as server:
        _, answer = server.ask("POST", SESSIONS, SESSION, key=ATTACKER)
        session = answer.decode().split('"id":"')[1].split('"')[0]
        assert session
        started = {"classes": CLASSES, "images": [images.small_jpeg()], "parameters": {"iterations": 2}, "name": "mine"}
        server.ask("POST", CLASSIFIERS, started, key=ATTACKER)
        end = time.monotonic() + 60
        while server.ask("GET", f"{CLASSIFIERS}/mine", key=ATTACKER)[0] != 200:
            assert time.monotonic() < end, "the classifier was not learned"
            time.sleep(0.1)
    for blob in (folder / "blobs").iterdir():
        data = blob.read_bytes()
        match kind:
            case "cut":
                blob.write_bytes(data[: len(data) // 2])
            case "changed":
                blob.write_bytes(b"\xff" * len(data))
            case "other":
                blob.write_bytes(save({"proxies": torch.zeros(2, 2)}))
            case "gone":
                blob.unlink()


def damaged(kind: str, name: str) -> None:
    @attack(name, once=True, answers=frozenset({200, 404, 500, 503, 507}), prepare=lambda folder: damage(folder, kind))
    async def send(attacker: Attacker) -> None:
        """Not the caller's fault, so no 400; and it can be deleted."""
        await attacker.post("/v1/classify", classify(images.small_jpeg(), classes=None, classifier="mine"))
        await attacker.request("GET", f"{CLASSIFIERS}/mine/file")
        for session in (await attacker.request("GET", SESSIONS)).json()["data"]:
            await attacker.request("GET", f"{SESSIONS}/{session['id']}/snapshot")
            await attacker.post(f"{SESSIONS}/{session['id']}/observe", {"images": [images.small_jpeg()]})
            if (await attacker.request("DELETE", f"{SESSIONS}/{session['id']}")).status != 200:
                attacker.complain("the session cannot be deleted")
        if (await attacker.request("DELETE", f"{CLASSIFIERS}/mine")).status != 200:
            attacker.complain("the classifier cannot be deleted")


damaged("cut", "stored files that were cut short")
damaged("changed", "stored files whose bytes are others")
damaged("gone", "stored files that are gone")
