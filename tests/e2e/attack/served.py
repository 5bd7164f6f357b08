"""A server under attack, and what stands around it: the probe, the well-behaved caller and the bystander."""

import contextlib
import http.client
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.attack import process
from tests.e2e.attack.caller import chat, picture
from tests.e2e.attack.pace import Slice

ROOT = Path(__file__).parents[3]
ATTACKER, WELL_BEHAVED, WATCHER = "key-of-the-attacker", "key-of-the-other", "key-of-the-watcher"
INFLIGHT = 2**30
OPTIONS = (
    *("--port", "0", "--threads", "1", "--max-inflight-bytes", "1GiB", "--feature-cache-bytes", "64MiB"),
    *("--prefix-cache-bytes", "32MiB"),
    *("--api-key", ",".join((ATTACKER, WELL_BEHAVED, WATCHER)), "--allowed-media-networks", "127.0.0.0/8"),
)
STRICT = ("--receive-timeout", "3", "--send-timeout", "2", "--key-streams", "2", "--key-classifiers", "2")
"""For attacks whose slow callers are to be gone, and whose quotas are to be full, within their time."""
START_SECONDS = 300


@dataclass
class Lines:
    """What a child process prints, as it comes; `first` is there once it has printed anything."""

    child: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.append(line.strip())
            self.first.set()
        self.first.set()

    def tell(self, line: str) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(f"{line}\n")
        self.child.stdin.flush()

    def end(self) -> None:
        self.child.kill()
        self.child.wait(30)


def module(name: str, *arguments: object) -> Lines:
    """A module of this folder as a process."""
    command = [sys.executable, "-m", f"tests.e2e.attack.{name}", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return Lines(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))  # type: ignore[call-overload]


class Server:
    """`covervlm serve` with its own data folder, from its start to its end.

    wrapper: a command that the server's command is appended to, e.g. one that gives it a small disk.
    """

    def __init__(self, folder: Path, *options: str, wrapper: Sequence[str] = ()) -> None:
        """Raises AssertionError with the end of its log where it does not start."""
        self.folder, self.options = folder, options
        self.log = folder.with_name(f"{folder.name}.log")
        command = [sys.executable, "-m", "tests.e2e.attack.server", *OPTIONS, "--data-dir", str(folder)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self.log.open("w") as log:
            self.server = subprocess.Popen(
                [*wrapper, *command, *options], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT
            )
        with self._ended_where_it_fails():
            end = time.monotonic() + START_SECONDS
            while (port := self._port()) is None:
                assert self.alive, f"the server did not start:\n{self.written()[-4000:]}"
                assert time.monotonic() < end, "the server did not start in time"
                time.sleep(0.05)
            self.port = port

    @contextlib.contextmanager
    def _ended_where_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.server.kill()
            self.server.wait(30)
            raise

    def _port(self) -> int | None:
        for line in self.written().splitlines():
            if line.startswith("covervlm serves "):
                return int(line.rpartition(":")[2])
        return None

    def written(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.server.pid

    @property
    def alive(self) -> bool:
        return self.server.poll() is None

    def stop(self) -> int:
        """Its exit status."""
        if self.alive:
            self.server.send_signal(signal.SIGTERM)
        try:
            return self.server.wait(45)
        except subprocess.TimeoutExpired:
            self.server.kill()
            return self.server.wait(30)

    def ask(
        self, method: str, path: str, body: object = None, *, key: str = WATCHER, seconds: float = 60
    ) -> tuple[int, bytes]:
        """Status and body over a connection of its own. Raises OSError where nothing comes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Connection": "close"}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        with contextlib.closing(connection):
            try:
                connection.request(method, path, data, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            except http.client.HTTPException as error:
                raise OSError(str(error)) from error

    def works(self, key: str) -> bool:
        """Whether this key's normal requests are answered."""
        try:
            asked, _ = self.ask("POST", "/v1/chat/completions", chat(picture()), key=key)
            body = {"images": [picture()], "classes": ["a circle", "a star"]}
            labelled, _ = self.ask("POST", "/v1/classify", body, key=key)
        except OSError:
            return False
        return asked == labelled == 200

    def gauges(self) -> dict[str, float]:
        """Of /metrics, those without labels. Raises OSError where there is no answer."""
        _, text = self.ask("GET", "/metrics", seconds=30)
        lines = [line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines if "{" not in name}

    def tasks(self) -> int:
        return int(self.ask("GET", "/debug/tasks")[1])

    def limit_files(self, number: int) -> None:
        """As `ulimit -n` would have; also while it runs."""
        _, most = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (min(number, most), most))


class Served(Server):
    """A server that is attacked, and what stands around it: used by one attack after another.

    idle: its memory once it has answered a few requests. idle_cores: what answering the probe takes.
    quiet, quiet_health: the well-behaved caller in the last moments without an attack, and /health's slowest in them.
    """

    def __init__(self, folder: Path, *options: str, wrapper: Sequence[str] = ()) -> None:
        super().__init__(folder, *options, wrapper=wrapper)
        with self._ended_where_it_fails():
            self._warm_up()
        self.bystander = module("bystander")
        assert self.bystander.first.wait(60)
        self.picture_port = int(self.bystander.lines[0])
        self.caller = module("caller", self.port, self.picture_port, WELL_BEHAVED)
        self.resume()
        time.sleep(1.5)
        self.pause()
        self.probe = module("probe", self.port, self.picture_port)
        began, used = time.monotonic(), process.seconds(self.pid)
        time.sleep(1)
        self.idle_cores = (process.seconds(self.pid) - used) / (time.monotonic() - began)
        self.idle, self.idle_threads = process.resident(self.pid), process.threads(self.pid)
        self.quiet: deque[Slice] = deque(maxlen=4)
        self.quiet_health: deque[float] = deque(maxlen=4)

    def stop(self) -> int:
        """At once: how a server ends in good order is not what is tested here."""
        for child in (self.caller, self.probe, self.bystander):
            child.end()
        self.server.kill()
        return self.server.wait(30)

    def _warm_up(self) -> None:
        """Load the embedding model, and let every pool of threads grow to its size."""

        def ask() -> None:
            for key in (WELL_BEHAVED, ATTACKER):
                assert self.works(key)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert self.works(ATTACKER), f"the server does not work:\n{self.written()[-4000:]}"

    # The well-behaved caller.

    def resume(self) -> None:
        self.caller.tell("go")

    def pause(self) -> None:
        """Returns once its last request has ended."""
        seen = self.caller.lines.count("paused")
        self.caller.tell("pause")
        end = time.monotonic() + 90
        while self.caller.lines.count("paused") == seen and time.monotonic() < end:
            time.sleep(0.02)
