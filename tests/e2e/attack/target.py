"""The server as an attack sees it: where it listens, and what the harness knows of its process and files."""

import contextlib
import http.client
import json
import resource
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.attack.caller import chat, picture

ATTACKER, WELL_BEHAVED, WATCHER = "key-of-the-attacker", "key-of-the-other", "key-of-the-watcher"
INFLIGHT = 2**30
STRICT = ("--receive-timeout", "2", "--send-timeout", "1", "--key-streams", "2", "--key-classifiers", "2")
"""For attacks whose slow callers are to be gone, and whose quotas are to be full, within their time."""


@dataclass
class Target:
    """folder: its data. idle: bytes of memory once it has answered a few requests."""

    port: int
    pid: int
    folder: Path
    idle: int = 0

    @classmethod
    def of(cls, told: dict[str, object]) -> "Target":
        """What `told` of another process says."""
        return cls(int(str(told["port"])), int(str(told["pid"])), Path(str(told["folder"])), int(str(told["idle"])))

    def told(self) -> dict[str, object]:
        return {"port": self.port, "pid": self.pid, "folder": str(self.folder), "idle": self.idle}

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def written(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

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

    def charged(self) -> float:
        """Bytes for requests in flight, as the server counts them; 0 for one that does not count. Raises OSError."""
        return self.gauges().get("covervlm_inflight_bytes", 0.0)

    def tasks(self) -> int:
        return int(self.ask("GET", "/debug/tasks")[1])

    def limit_files(self, number: int) -> None:
        """As `ulimit -n` would have; also while it runs."""
        _, most = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (min(number, most), most))
