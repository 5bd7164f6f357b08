"""The harness's processes: each in a session of its own, so that the system shares processors out between them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass
class Child:
    """What a process prints, as it comes."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._news = threading.Condition()
        self._over = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.strip())
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def line(self, number: int, seconds: float) -> str:
        """The line of that number, once it is there. Raises TimeoutError where the process says no more."""
        end = time.monotonic() + seconds
        with self._news:
            while len(self.lines) <= number:
                if self._over or not self._news.wait(end - time.monotonic()):
                    raise TimeoutError(f"{self.process.args!r} did not answer")
            return self.lines[number]

    def reply(self, command: dict[str, object], seconds: float) -> dict[str, object]:
        """What the process answers to a command, one line of JSON to another."""
        seen = len(self.lines)
        self.tell(json.dumps(command))
        answer: dict[str, object] = json.loads(self.line(seen, seconds))
        return answer

    def end(self) -> None:
        """With all that it has started."""
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(30)


def child(name: str, *arguments: object) -> Child:
    """A module of this folder as a process."""
    command = [sys.executable, "-m", f"tests.e2e.attack.{name}", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}  # as pytest has it
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return Child(
        subprocess.Popen(command, cwd=ROOT, text=True, env=env, start_new_session=True, **pipes)  # type: ignore[call-overload]
    )
