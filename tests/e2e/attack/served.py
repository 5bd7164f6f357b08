"""A server under attack, and what stands around it: the probe, the well-behaved caller and the bystander."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.e2e.attack import attacked, process
from tests.e2e.attack.caller import KINDS
from tests.e2e.attack.children import ROOT, child
from tests.e2e.attack.pace import Slice
from tests.e2e.attack.target import ATTACKER, WATCHER, WELL_BEHAVED, Target

OPTIONS = (
    *("--port", "0", "--threads", "1", "--max-inflight-bytes", "1GiB", "--feature-cache-bytes", "64MiB"),
    *("--prefix-cache-bytes", "32MiB", "--media-timeout", "5", "--media-read-timeout", "3"),
    *("--api-key", ",".join((ATTACKER, WELL_BEHAVED, WATCHER)), "--allowed-media-networks", "127.0.0.0/8"),
)
START_SECONDS = 300
IDLE_SECONDS = 0.5


class Server(Target):
    """`covervlm serve` with its own data folder, from its start to its end.

    wrapper: a command that the server's command is appended to, e.g. one that gives it a small disk.
    """

    def __init__(self, folder: Path, *options: str, wrapper: Sequence[str] = ()) -> None:
        """Raises AssertionError with the end of its log where it does not start."""
        super().__init__(port=0, pid=0, folder=folder)
        command = [sys.executable, "-m", "tests.e2e.attack.server", *OPTIONS, "--data-dir", str(folder)]
        env = attacked.environment(folder.parent) | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self.log.open("w") as log:
            self.server = subprocess.Popen(
                [*wrapper, *command, *options],
                cwd=ROOT,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.server.pid
        with self._ended_where_it_fails():
            end = time.monotonic() + START_SECONDS
            while not (port := self._written_port()):
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

    def _written_port(self) -> int:
        for line in self.written().splitlines():
            if line.startswith("covervlm serves "):
                return int(line.rpartition(":")[2])
        return 0

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


class Served(Server):
    """A server that is attacked, and what stands around it: used by one attack after another.

    idle: its memory once it has answered a few requests. idle_cores: what answering the probe takes.
    quiet, quiet_health: the well-behaved caller in the last moments without an attack, and /health's slowest in them.
    """

    def __init__(self, folder: Path, *options: str, wrapper: Sequence[str] = ()) -> None:
        super().__init__(folder, *options, wrapper=wrapper)
        with self._ended_where_it_fails():
            self._warm_up()
        self.bystander = child("bystander")
        self.picture_port = int(self.bystander.line(0, 60))
        self.caller = child("caller", self.port, self.picture_port, WELL_BEHAVED)
        self.resume()
        self.caller.line(10 * KINDS, 60)
        self.pause()
        self.probe = child("probe", self.port, self.picture_port)
        self.probe.line(2, 60)
        began, used = time.monotonic(), process.seconds(self.pid)
        time.sleep(IDLE_SECONDS)
        self.idle_cores = (process.seconds(self.pid) - used) / (time.monotonic() - began)
        self.idle, self.idle_threads = process.resident(self.pid), process.threads(self.pid)
        self.quiet: deque[Slice] = deque(maxlen=4)
        self.quiet_health: deque[float] = deque(maxlen=4)

    def stop(self) -> int:
        """At once: how a server ends in good order is not what is tested here."""
        for each in (self.caller, self.probe, self.bystander):
            each.end()
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
        seen = len(self.caller.lines)
        self.caller.tell("pause")
        end = time.monotonic() + 90
        with contextlib.suppress(TimeoutError):
            while self.caller.line(seen, end - time.monotonic()) != "paused":
                seen += 1
