"""A process that uses the server as it is meant to be used: one request at a time, of four kinds in turn.

A line of its output is `KIND BEGAN SECONDS STATUS`, status 0 where there was no answer. It works while the last line of
its standard input was `go`, and says `paused` once it has stopped.
"""

import base64
import http.client
import io
import json
import sys
import threading
import time
from collections.abc import Iterator

from PIL import Image

from tests.e2e.attack.lifeline import end_with_parent

CLASSES = ["circle", "square", "star", "triangle"]
LONGEST = 60
KINDS = 4

Request = tuple[str, str, str, object]
"""Kind, method, path and body."""


def picture() -> str:
    """A new one each time, so that no cache knows the answer."""
    file = io.BytesIO()
    Image.effect_noise((96, 96), 60).convert("RGB").save(file, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def chat(url: str) -> dict[str, object]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What color is the star?"}]
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 4,
        "vision_pruning": {"keep_tokens": 16},
    }


def requests(picture_port: int) -> Iterator[Request]:
    while True:
        yield "chat", "POST", "/v1/chat/completions", chat(picture())
        yield "classify", "POST", "/v1/classify", {"images": [picture()], "classes": CLASSES}
        url = f"http://127.0.0.1:{picture_port}/picture"
        yield "fetch", "POST", "/v1/classify", {"images": [url], "classes": CLASSES}
        yield "list", "GET", "/v1/streams", None


def status(connection: http.client.HTTPConnection, key: str, request: Request) -> int:
    _, method, path, body = request
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    for _ in range(2):  # a connection that was kept may have ended meanwhile
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (ConnectionError, http.client.HTTPException):
            connection.close()
        except OSError:
            connection.close()
            return 0
    return 0


def main() -> None:
    end_with_parent()
    port, picture_port, key = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    going = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            going.set() if line.strip() == "go" else going.clear()

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST)
        for request in requests(picture_port):
            if not going.is_set():
                print("paused", flush=True)
                going.wait()
            began = time.monotonic()
            found = status(connection, key, request)
            print(f"{request[0]} {began:.4f} {time.monotonic() - began:.4f} {found}", flush=True)
            if found != 200:
                time.sleep(0.05)

    threading.Thread(target=work, daemon=True).start()
    listen()  # until the harness has gone


if __name__ == "__main__":
    main()
