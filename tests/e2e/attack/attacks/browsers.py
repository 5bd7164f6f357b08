"""What a web page in somebody's browser can send: names of others for Host, plain text, forms, forged origins."""

import io

import numpy as np

from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.registry import REFUSED, attack
from tests.e2e.attack.target import ATTACKER

REBOUND = (
    "evil.test",
    "evil.test:8000",
    "127.0.0.1.evil.test",
    "localhost.evil.test",
    "169.254.169.254",
    "[::ffff:1.2.3.4]",
)
CLASSES = {"classes": ["red", "blue"], "horizon": 5}
POSTS = ("/v1/streams", "/v1/chat/completions", "/v1/prune", "/v1/clusterings", "/v1/classify")
MISDIRECTED = REFUSED | {403, 421}


@attack("a page behind a name of its own that leads to this machine (DNS rebinding)", answers=MISDIRECTED, once=True)
async def rebound(attacker: Attacker) -> None:
    for host in REBOUND:
        for method, path in (("GET", "/v1/models"), ("GET", "/"), ("GET", "/openapi.json"), ("POST", POSTS[0])):
            answer = await attacker.request(method, path, CLASSES, headers={"Host": host})
            if answer.status < 400:
                attacker.complain(f"{method} {path} is answered for the host {host}")
    for host in (
        "127.0.0.1",
        "localhost",
        f"127.0.0.1:{attacker.target.port}",
        f"localhost:{attacker.target.port}",
        "[::1]",
    ):
        if (await attacker.request("GET", "/v1/models", headers={"Host": host}, counted=False)).status != 200:
            attacker.complain(f"the host {host} is refused")


PLAIN = (
    "text/plain",
    "text/plain;charset=UTF-8",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
)


@attack("uploads that a page elsewhere may send without asking", answers=MISDIRECTED | {404, 415}, once=True)
async def simple_requests(attacker: Attacker) -> None:
    width = len((await attacker.post("/v1/embeddings", {"input": "a"}, counted=False)).json()["data"][0]["embedding"])
    file = io.BytesIO()
    np.save(file, np.ones((1, width), np.float32))
    for kind in PLAIN:
        headers = {"Content-Type": kind, "Origin": "http://evil.test", "Sec-Fetch-Site": "cross-site"}
        for path, data in (("/v1/embeddings/uploads", file.getvalue()), *((path, b"{}") for path in POSTS)):
            answer = await attacker.post(path, data, headers=headers)
            if answer.status < 400:
                attacker.complain(f"{path} takes {kind} from another site")


@attack("requests of another site in JSON and their preflights", answers=MISDIRECTED | {200, 201, 401, 405}, once=True)
async def preflights(attacker: Attacker) -> None:
    for path in POSTS:
        asks = {"Origin": "http://evil.test", "Access-Control-Request-Method": "POST"}
        answer = await attacker.request("OPTIONS", path, headers=asks, key=None)
        if any(name.startswith("access-control-allow") for name in answer.headers):
            attacker.complain(f"{path} may be called by pages of other sites")


@attack("lengths that say two things", answers=MISDIRECTED | {0, 501}, once=True)
async def two_lengths(attacker: Attacker) -> None:
    key = f"Authorization: Bearer {ATTACKER}\r\n"
    for lines in (
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length : 5\r\n",
    ):
        head = f"POST /v1/streams HTTP/1.1\r\nHost: 127.0.0.1\r\n{key}Connection: close\r\n"
        body = b'{"classes": ["red", "blue"], "horizon": 5}'
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        answer = await attacker.exchange(
            f"{head}Content-Type: application/json\r\n{lines}\r\n".encode(), chunked if "Transfer" in lines else body
        )
        attacker.answers[answer.status] += 1
        if answer.status < 400 and answer.status:
            attacker.complain(f"{lines.strip()!r} is accepted")
