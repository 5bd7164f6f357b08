"""A process that asks the server's /health and, at the same moments, the bystander, and writes down how long each took.

A line of its output is `KIND BEGAN SECONDS OK`: KIND is new (a new connection for each question, as a load balancer
asks), kept (one connection for all) or still (the bystander); times are those of the monotonic clock.
"""

import contextlib
import os
import re
import socket
import sys
import threading
import time

from tests.e2e.attack.lifeline import end_with_parent

EVERY = 0.03
LONGEST = 15.0


def _answered(connection: socket.socket, last: bool) -> bool:
    end = b"close" if last else b"keep-alive"
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: " + end + b"\r\n\r\n")
    answer = b""
    while not _complete(answer):
        piece = connection.recv(4096)
        if not piece:
            return False
        answer += piece
    return answer.startswith(b"HTTP/1.1 200 ")


def _complete(answer: bytes) -> bool:
    """Whether head and body are there: what was left over would be taken for the next answer."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


def _ask(kind: str, port: int) -> None:
    kept: socket.socket | None = None
    while True:
        began = time.monotonic()
        good = False
        try:
            connection = kept or socket.create_connection(("127.0.0.1", port), timeout=LONGEST)
            good = _answered(connection, last=kind != "kept")
            if kind == "kept" and good:
                kept = connection
            else:
                connection.close()
                kept = None
        except OSError:
            kept = None
        print(f"{kind} {began:.4f} {time.monotonic() - began:.4f} {int(good)}\n", end="", flush=True)
        time.sleep(EVERY if good else 10 * EVERY)


if __name__ == "__main__":
    end_with_parent()
    with contextlib.suppress(OSError):
        os.nice(-10)  # where that is allowed: its own wait for a processor is not the server's
    server, bystander = map(int, sys.argv[1:])
    for kind, port in (("new", server), ("kept", server), ("still", bystander)):
        threading.Thread(target=_ask, args=(kind, port), daemon=True).start()
    sys.stdin.read()  # until the harness has gone
