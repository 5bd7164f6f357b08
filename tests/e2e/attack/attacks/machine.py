"""A machine that fails: a full disk, a read-only one, no memory left in the container, a clock that goes backwards."""

import asyncio
import atexit
import contextlib
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.attack import attacked, images
from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.attacks.jobs import finished, fit, upload
from tests.e2e.attack.attacks.store import SESSION, SESSIONS, STORED
from tests.e2e.attack.bodies import chat, classify
from tests.e2e.attack.children import ROOT
from tests.e2e.attack.registry import REFUSED, attack
from tests.e2e.attack.served import Server
from tests.e2e.attack.target import ATTACKER, INFLIGHT, WATCHER

MIB = 2**20
CONTAINER = Path("/sys/fs/cgroup/memory") if Path("/sys/fs/cgroup/memory").is_dir() else Path("/sys/fs/cgroup")
LIMIT, USED = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes")
    if CONTAINER.name == "memory"
    else ("memory.max", "memory.current")
)


def no_mounts() -> str | None:
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return None if tried.returncode == 0 else "needs the right to mount, in a namespace of its own"


def in_namespace(script: str, folder: Path) -> Sequence[str]:
    """The command after this one runs where `script` has mounted what nobody else sees; $0 is the folder."""
    return ["unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', str(folder)]


def small_disk(folder: Path) -> Sequence[str]:
    return in_namespace('mount -t tmpfs -o size=4m none "$0"', folder)


@attack("a full disk", once=True, answers=STORED, wrapper=small_disk, needs=no_mounts, limit=40)
async def full_disk(attacker: Attacker) -> None:
    inside = Path(f"/proc/{attacker.target.pid}/root{attacker.target.folder}")
    kept = [(await attacker.post(SESSIONS, SESSION)).json()["id"] for _ in range(3)]
    filler = inside / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        for _ in range(2000):
            file.write(bytes(4096))
            file.flush()
    refused = await attacker.post(SESSIONS, SESSION)
    if refused.status != 507:
        attacker.complain(f"a session on a full disk: {refused.status}")
    await attacker.post(f"{SESSIONS}/{kept[0]}/observe", {"images": [images.small_jpeg()]})
    for session in kept:
        gone = await attacker.request("DELETE", f"{SESSIONS}/{session}")
        there = await attacker.request("GET", f"{SESSIONS}/{session}")
        if gone.status != 200 or there.status != 404:
            attacker.complain(f"deleting on a full disk: {gone.status}, then {there.status}")
    filler.unlink()
    cured = await attacker.post(SESSIONS, SESSION)
    if cured.status != 201:
        attacker.complain(f"with room again: {cured.status}")
    for session in [*kept, cured.json().get("id", "")]:
        await attacker.request("DELETE", f"{SESSIONS}/{session}")


def own_namespace(folder: Path) -> Sequence[str]:
    return in_namespace("true", folder)


def as_the_server(attacker: Attacker, *command: str) -> None:
    """In the server's own view of the disks."""
    where = ["nsenter", "-t", str(attacker.target.pid), "-m"]
    subprocess.run([*where, *command], check=True, capture_output=True)


@attack(
    "a folder of files that becomes read-only",
    once=True,
    answers=STORED,
    wrapper=own_namespace,
    needs=no_mounts,
    limit=40,
)
async def becomes_read_only(attacker: Attacker) -> None:
    session = (await attacker.post(SESSIONS, SESSION)).json()["id"]
    blobs = str(attacker.target.folder / "blobs")
    as_the_server(attacker, "mount", "--bind", blobs, blobs)
    as_the_server(attacker, "mount", "-o", "remount,bind,ro", blobs)
    refused = await attacker.post(SESSIONS, SESSION)
    if refused.status not in (503, 507):
        attacker.complain(f"a session on a read-only disk: {refused.status}")
    seen = await attacker.post(f"{SESSIONS}/{session}/observe", {"images": [images.small_jpeg()]})
    labelled = await attacker.post("/v1/classify", classify(images.small_jpeg()))
    if (seen.status, labelled.status) != (200, 200):
        attacker.complain(f"labels on a read-only disk: {seen.status} and {labelled.status}")
    as_the_server(attacker, "umount", blobs)
    if (cured := await attacker.post(SESSIONS, SESSION)).status != 201:
        attacker.complain(f"with a disk to write to again: {cured.status}")


@attack("a start on a read-only disk", once=True, needs=no_mounts, limit=120)
async def starts_read_only(attacker: Attacker) -> None:
    folder = attacker.target.folder.with_name("read-only")
    folder.mkdir(exist_ok=True)
    command = in_namespace('mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"', folder)
    serve = [sys.executable, "-m", "tests.e2e.attack.server", "--port", "0", "--data-dir", str(folder)]
    process = await asyncio.create_subprocess_exec(
        *command,
        *serve,
        cwd=ROOT,
        env=attacked.environment(folder.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(100):
            output, _ = await process.communicate()
        lines = [line for line in output.decode().splitlines() if "Loading weights" not in line]
        if process.returncode == 0 or "Traceback" in output.decode() or "read-only" not in output.decode().lower():
            attacker.complain(f"status {process.returncode}: {' / '.join(lines[-3:])}")
    finally:
        if process.returncode is None:
            process.kill()


@attack("a clock that goes back by a day, and forward by ten years", once=True, answers=STORED, limit=60)
async def clock(attacker: Attacker) -> None:
    uploaded = await upload(attacker, ATTACKER, 50)
    try:
        for number, seconds in enumerate((-86_400, 315_360_000, 0)):
            await attacker.request("GET", f"/debug/clock?seconds={seconds}", key=WATCHER, counted=False)
            session = await attacker.post(SESSIONS, SESSION)
            job = await fit(attacker, f"clock-{number}", uploaded, iterations=5, key=ATTACKER)
            state = await finished(attacker, job.json()["id"])
            if (session.status, state["state"]) != (201, "succeeded"):
                attacker.complain(f"after {seconds} s: {session.status}, job {state['state']}")
            elif state["finished"] < state["created"]:
                attacker.complain(f"after {seconds} s a job ended before it began")
            await attacker.post(f"{SESSIONS}/{session.json()['id']}/observe", {"images": [images.small_jpeg()]})
            await attacker.request("DELETE", f"{SESSIONS}/{session.json()['id']}")
            await attacker.request("DELETE", f"/v1/classifiers/clock-{number}")
            await attacker.post("/v1/chat/completions", chat(images.small_jpeg()))
    finally:
        await attacker.request("GET", "/debug/clock?seconds=0", key=WATCHER, counted=False)
        await attacker.request("DELETE", f"/v1/embeddings/uploads/{uploaded}", counted=False)


def no_containers() -> str | None:
    place = CONTAINER / f"covervlm-{os.getpid()}"
    try:
        place.mkdir()
    except OSError:
        return "needs the right to make a memory cgroup"
    there = (place / LIMIT).exists()
    place.rmdir()
    return None if there else "needs the memory controller of cgroups"


def group(folder: Path) -> Path:
    return CONTAINER / f"covervlm-{zlib.crc32(bytes(folder)):08x}"


def ungroup(folder: Path) -> None:
    with contextlib.suppress(OSError):
        group(folder).rmdir()


def contained(folder: Path) -> Sequence[str]:
    group(folder).mkdir(exist_ok=True)
    atexit.register(ungroup, folder)
    return ["sh", "-c", f'echo $$ > "{group(folder)}/cgroup.procs" && exec "$@"', "sh"]


@attack(
    "all that fills memory, in a container that has room for requests in flight and little more",
    once=True,
    answers=REFUSED | {0, 200},
    wrapper=contained,
    needs=no_containers,
    make=images.large_png,
    limit=40,
)
async def container(attacker: Attacker) -> None:
    """A server that is killed for its memory ends, which the harness sees."""
    room = attacker.target.idle + INFLIGHT + 512 * MIB
    (group(attacker.target.folder) / LIMIT).write_text(str(room))
    large, tiny = chat(*[images.large_png()] * 7), classify(*[images.tiny_png()] * 2048)
    await asyncio.gather(
        *(attacker.post("/v1/chat/completions", large) for _ in range(4)),
        *(attacker.post("/v1/classify", tiny) for _ in range(2)),
    )


def killed_for_memory(folder: Path) -> None:
    """A server that was given work to remember, and then so little memory that the system ended it."""
    server = Server(folder, wrapper=contained(folder))
    try:
        for _ in range(3):
            assert server.ask("POST", SESSIONS, SESSION, key=ATTACKER)[0] == 201
        used = int((group(folder) / USED).read_text())
        (group(folder) / LIMIT).write_text(str(used + 16 * MIB))
        for _ in range(10):
            with contextlib.suppress(OSError):
                server.ask("POST", "/v1/chat/completions", chat(*[images.large_png()] * 3), key=ATTACKER, seconds=20)
            if not server.alive:
                break
    finally:
        status = server.stop()
    ungroup(folder)
    assert status == -signal.SIGKILL


@attack(
    "a folder whose server was killed for want of memory",
    once=True,
    answers=STORED,
    prepare=killed_for_memory,
    needs=no_containers,
)
async def after_kill(attacker: Attacker) -> None:
    listed = (await attacker.request("GET", SESSIONS)).json()["data"]
    if len(listed) < 3:
        attacker.complain(f"{len(listed)} of 3 sessions are left")
    for session in listed:
        await attacker.post(f"{SESSIONS}/{session['id']}/observe", {"images": [images.small_jpeg()]})
