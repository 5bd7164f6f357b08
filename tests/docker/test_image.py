"""The CPU image built for real, without Docker: buildah in a chroot, on a base image from debootstrap.

Needs root, buildah and debootstrap. Debian's mirror is debootstrap's own unless DEBIAN_MIRROR names another; pip's
settings and the machine's certificates are those in force here: they go into the base image, so the Dockerfile needs
to know of neither. BUILDAH_ISOLATION and STORAGE_DRIVER may be set from outside.
"""

import ast
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

from covervlm.server.demo import example_scenes

pytestmark = pytest.mark.image
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
NAME, BASE = "localhost/covervlm:test", "localhost/covervlm-test-base"


class Buildah:
    """buildah with a store of its own, which the end of the tests removes."""

    def __init__(self, folder: Path) -> None:
        self.command = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run")]
        self.environment = {"BUILDAH_ISOLATION": "chroot", **os.environ}

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run([*self.command, *arguments], env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout.strip()


def pip_settings() -> dict[str, str]:
    """pip's settings as in force here, by option name; what the environment sets wins, as it does for pip."""
    lines = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    pairs = [line.partition("=") for line in lines.stdout.splitlines()]
    ranked = sorted(pairs, key=lambda pair: pair[0].startswith(":env:"))
    return {name.rpartition(".")[2]: ast.literal_eval(value) for name, _, value in ranked}


def local_paths(settings: dict[str, str]) -> set[Path]:
    """Files and folders of this machine that pip's settings point to."""
    words = [word for value in settings.values() for word in value.split()]
    paths = [Path(urlsplit(word).path) for word in words if word.startswith(("/", "file:///"))]
    # An index lies in a folder whose files it links to.
    return {path.parent if path.name == "simple" else path for path in paths if path.exists()}


def make_base(buildah: Buildah, folder: Path) -> list[str]:
    """A Debian with Python and this machine's settings as the image BASE; returns build options for what pip reads."""
    tree = folder / "base"
    # debootstrap knows no virtual packages, of which python3-distutils is one that python3.11-venv needs.
    packages = "--include=python3.11,python3.11-venv,python3-distutils,ca-certificates"
    mirror = [os.environ["DEBIAN_MIRROR"]] if "DEBIAN_MIRROR" in os.environ else []
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", str(tree), *mirror], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    settings = pip_settings()
    lines = [f"{name} = {value.replace(chr(10), chr(10) + '    ')}" for name, value in settings.items()]
    (tree / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    certificates = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    if certificates:
        shutil.copy(certificates, tree / "etc/ssl/certs/ca-certificates.crt")
    volumes = []
    for path in local_paths(settings):
        if path.is_dir():
            volumes.append(f"--volume={path}:{path}:ro")
        else:
            (tree / path.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tree / path.relative_to("/"))
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(tree), "/")
    buildah("commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(tree)
    return volumes


class Image(NamedTuple):
    buildah: Buildah
    container: str
    config: dict


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Iterator[Image]:
    if os.geteuid() != 0:
        pytest.skip("debootstrap and a chroot need root")
    folder = tmp_path_factory.mktemp("image")
    buildah = Buildah(folder)
    try:
        volumes = make_base(buildah, folder)
        options = ["--layers=false", "--format=docker", f"--build-arg=BASE={BASE}", *volumes]
        buildah("bud", *options, "-f", str(ROOT / "docker/Dockerfile.cpu"), "-t", NAME, str(ROOT))
        config = json.loads(buildah("inspect", "--type", "image", NAME))["Docker"]["config"]
        yield Image(buildah, buildah("from", NAME), config)
    finally:
        with contextlib.suppress(AssertionError):
            buildah("rm", "--all")
            buildah("rmi", "--all", "--force")
        shutil.rmtree(folder, ignore_errors=True)


class Running(NamedTuple):
    process: subprocess.Popen
    port: int
    log: list[dict]


@pytest.fixture(scope="module")
def server(image) -> Iterator[Running]:
    """The image's own command in a container, on a free port of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"COVERVLM_HOST": "127.0.0.1", "COVERVLM_PORT": str(port), "COVERVLM_LOG_FORMAT": "json"}
    options = [f"--env={name}={value}" for name, value in variables.items()]
    started = [*image.config["Entrypoint"], *image.config["Cmd"]]
    command = [*image.buildah.command, "run", *options, image.container, "--", *started]
    process = subprocess.Popen(command, env=image.buildah.environment, stderr=subprocess.PIPE, text=True)
    overdue = threading.Timer(SECONDS, process.kill)
    overdue.start()
    log: list[str] = []
    for line in process.stderr:
        log.append(line)
        if "covervlm serves demo on " in line:
            break
    reader = threading.Thread(target=lambda: log.extend(process.stderr))
    reader.start()
    try:
        assert process.poll() is None, "".join(log)
        yield Running(process, port, log)
    finally:
        overdue.cancel()
        process.kill()
        process.wait(SECONDS)
        reader.join(SECONDS)


def server_pid(running: Running) -> int:
    """The last of the processes that run as the image's user: the first is buildah's own, between it and the server."""
    pending, found = [running.process.pid], []
    while pending:
        pid = pending.pop()
        if "\nUid:\t10001\t10001\t10001" in Path(f"/proc/{pid}/status").read_text():
            found.append(pid)
        for task in Path(f"/proc/{pid}/task").iterdir():
            pending += [int(child) for child in (task / "children").read_text().split()]
    return found[-1]


def test_the_image_is_what_the_dockerfile_promises(image):
    assert image.config["User"] == "10001:10001"
    assert "8000/tcp" in image.config["ExposedPorts"]
    assert image.config["Healthcheck"]["Test"][0] == "CMD"
    run = ("run", image.container, "--", "sh", "-c")
    assert image.buildah(*run, "id -u; id -g").split() == ["10001", "10001"]
    assert image.buildah(*run, "touch /data/x && echo writable") == "writable"
    assert image.buildah(*run, "command -v gcc pip; ls -d /src /wheels 2>/dev/null; true") == ""
    size = int(image.buildah(*run, "du -sxm / 2>/dev/null | cut -f1"))
    print(f"size of the image: {size} MB")
    assert size < 1800


def test_it_answers_a_question_about_a_picture(server):
    scene = example_scenes()[0]
    url = f"data:image/png;base64,{base64.b64encode(scene.path.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": scene.question}]
    body = {
        "model": "demo",
        "temperature": 0,
        "vision_pruning": {"keep_tokens": 64},
        "messages": [{"role": "user", "content": content}],
    }
    request = Request(f"http://127.0.0.1:{server.port}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urlopen(request, timeout=SECONDS) as response:
        answer = json.load(response)
    assert answer["choices"][0]["message"]["content"].strip() == scene.answer
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 64


def test_its_health_check_passes_and_fails_on_a_port_where_nobody_listens(image, server):
    check = image.config["Healthcheck"]["Test"][1:]
    image.buildah("run", f"--env=COVERVLM_PORT={server.port}", image.container, "--", *check)
    with socket.create_server(("127.0.0.1", 0)) as free:
        silent = free.getsockname()[1]
    with pytest.raises(AssertionError, match="Connection refused"):
        image.buildah("run", f"--env=COVERVLM_PORT={silent}", image.container, "--", *check)


def test_sigterm_ends_it_in_order(server):
    os.kill(server_pid(server), signal.SIGTERM)
    assert server.process.wait(SECONDS) == 0
