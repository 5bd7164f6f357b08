"""Bytes that a hostile or broken client might send to an HTTP server, from a seed."""

import json
import random
from collections.abc import Callable

from PIL import Image

from tests.server.api.scripted import chat_body, data_url

PIXEL = data_url(Image.new("RGB", (3, 2), "red"))
BODY = json.dumps(chat_body("What color is it?", PIXEL)).encode()
JSON = b"Content-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
PATHS = (b"/v1/chat/completions", b"/v1/prune", b"/v1/embeddings", b"/v1/classify", b"/v1/clusterings")


def post(headers: bytes, body: bytes = BODY, path: bytes = PATHS[0]) -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + JSON + headers + b"\r\n" + body


def get(path: bytes, headers: bytes = b"Host: localhost\r\n", version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + path + b" " + version + b"\r\n" + headers + b"\r\n"


def chunked(*chunks: bytes, headers: bytes = b"") -> bytes:
    return post(headers + b"Transfer-Encoding: chunked\r\n", b"".join(chunks))


def noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(1, 3000))


def noise_after_a_request_line(rng: random.Random) -> bytes:
    return b"POST /v1/prune HTTP/1.1\r\n" + noise(rng)


def noise_for_a_body(rng: random.Random) -> bytes:
    body = noise(rng)
    return post(b"Content-Length: %d\r\n" % len(body), body, rng.choice(PATHS))


def damaged(rng: random.Random) -> bytes:
    """A good request with some of its bytes changed, doubled or lost."""
    data = bytearray(post(LENGTH))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randint(1, 30)]
            case _:
                data[at:at] = data[at : at + rng.randint(1, 30)]
    return bytes(data)


def cut_off(rng: random.Random) -> bytes:
    whole = post(LENGTH)
    return whole[: rng.randrange(1, len(whole))]


def wrong_length(rng: random.Random) -> bytes:
    lengths = (b"-1", b"+5", b"five", b"1e3", b"0x10", b"9" * 5000, b"9" * 19, b"", b"5, 6", b"5\r\nContent-Length: 6")
    exact = b"%d" % len(BODY)
    return post(b"Content-Length: " + rng.choice((*lengths, b"5", b"0" * 30 + exact)) + b"\r\n")


def bad_chunks(rng: random.Random) -> bytes:
    bad = (
        b"zz\r\n",
        b"-5\r\nhello\r\n",
        b"5\r\nhelloworld\r\n0\r\n\r\n",
        b"ffffffffffffffffffff\r\nx",
        b"5;" + b"x" * 70_000 + b"\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"0\r\n" + b"Trailer: x\r\n" * 20_000 + b"\r\n",
        b"0\r\n\xff\xfe: x\r\n\r\n",
        b"\r\n\r\n",
        noise(rng),
    )
    return chunked(rng.choice(bad))


def good_chunks(rng: random.Random) -> bytes:
    cuts = sorted(rng.sample(range(1, len(BODY)), 5))
    pieces = [BODY[a:b] for a, b in zip([0, *cuts], [*cuts, len(BODY)], strict=True)]
    lying = rng.choice((b"", b"Content-Length: 3\r\n"))
    return chunked(*[b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces], b"0\r\n\r\n", headers=lying)


def odd_transfer_encoding(rng: random.Random) -> bytes:
    encoding = rng.choice((b"gzip", b"chunked, chunked", b"identity", b"chunked\r\nTransfer-Encoding: x", b"\xff"))
    return post(b"Transfer-Encoding: " + encoding + b"\r\n" + rng.choice((b"", LENGTH)))


def header_bomb(rng: random.Random) -> bytes:
    bombs = (
        b"X: " + b"a" * 200_000 + b"\r\n",
        b"".join(b"X-%d: y\r\n" % i for i in range(20_000)),
        b"X-%b: y\r\n" % (b"n" * 100_000),
        b"Cookie: " + b"a=b; " * 30_000 + b"\r\n",
        b"X: y\r\n" + b" folded\r\n" * 10_000,
    )
    return get(b"/v1/models", rng.choice(bombs))


def odd_header(rng: random.Random) -> bytes:
    lines = (
        b"X-Request-Id: \xff\xfe\r\n",
        b"X-Request-Id: a\x00b\r\n",
        b"X-Request-Id: a\r\n forged: b\r\n",
        b"X-Request-Id: " + b"r" * 5000 + b"\r\n",
        b"X-Request-Id: %0d%0aforged\r\n",
        b"Authorization: Bearer \xff\xfe\r\n",
        b"Authorization: Bearer\r\n",
        b"Authorization: \r\n",
        b"Accept: \xff\r\n",
        b"Accept: " + b"application/openmetrics-text;" * 500 + b"\r\n",
        b"Expect: 200-maybe\r\n",
        b"Expect: 100-continue\r\nContent-Length: 5\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        b"Origin: null\r\nAccess-Control-Request-Method: \xff\r\n",
        b"Range: bytes=-1-5,9-\r\n",
        b"If-Modified-Since: never\r\nIf-None-Match: \xff\r\n",
        b"Content-Encoding: gzip\r\n",
        b": no name\r\n",
        b"no colon\r\n",
        b"Sp ace: x\r\n",
    )
    return get(
        rng.choice((b"/v1/models", b"/metrics", b"/", b"/ui/app.js", b"/nowhere")),
        b"Host: localhost\r\n" + rng.choice(lines),
    )


def odd_host(rng: random.Random) -> bytes:
    hosts = (b"[", b"[::1", b"a b", b"\xff", b"x:99999999", b"x/../y?z#", b"", b"x\r\nHost: y", b"a" * 5000, b"@:@")
    return get(rng.choice((b"/nowhere", b"/v1/models", b"/")), b"Host: " + rng.choice(hosts) + b"\r\n")


def odd_target(rng: random.Random) -> bytes:
    targets = (
        b"/" + b"a" * 100_000,
        b"/" + b"a" * 30_000,
        b"/v1/models?" + b"a=b&" * 10_000,
        b"/v1/models/" + b"%F0%9F" * 500,
        b"/v1/models/%00%0d%0aforged:%20x",
        b"/v1/models/%ff%fe",
        b"/v1/models/\xff",
        b"/%",
        b"/v1/jobs/%2e%2e%2f%2e%2e",
        b"/ui/../../etc/passwd",
        b"/ui/%2e%2e/%2e%2e/etc/passwd",
        b"/ui/..%2f..%2fsettings.py",
        b"/ui/..%5c..%5csettings.py",
        b"/ui/examples/..%2f..%2fapp.js",
        b"/ui/%2fetc%2fpasswd",
        b"//evil.test/v1/models",
        b"http://evil.test/v1/models",
        b"*",
        b"?",
        b"/v1/models HTTP/1.1\r\nX: y",
        b"/v1/models\x00",
        b"/v1/\tmodels",
    )
    return get(rng.choice(targets))


def odd_method(rng: random.Random) -> bytes:
    methods = (
        b"TRACE",
        b"CONNECT",
        b"OPTIONS",
        b"HEAD",
        b"PATCH",
        b"PUT",
        b"DELETE",
        b"get",
        b"M" * 5000,
        b"A B",
        b"\xff",
    )
    path = rng.choice((*PATHS, b"/", b"/health", b"/metrics", b"/v1/jobs", b"*", b"/ui/app.js"))
    return rng.choice(methods) + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"


def odd_version(rng: random.Random) -> bytes:
    versions = (b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.1 x", b"http/1.1", b"", b"HTTP/1.10")
    return get(b"/v1/models", rng.choice((b"", b"Host: localhost\r\n")), rng.choice(versions))


def other_protocol(rng: random.Random) -> bytes:
    return rng.choice(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(300),
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b"\x05\x01\x00",
            b"EHLO mail\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + get(b"/health"),
            b"GET /\r\n",
            b"\n\n\n\r\n\r\n",
        )
    )


def pipelined(rng: random.Random) -> bytes:
    parts = (post(LENGTH), get(b"/health"), get(b"/nowhere"), post(b"Content-Length: 2\r\n", b"{}"), noise(rng))
    return b"".join(rng.choice(parts) for _ in range(rng.randint(2, 8)))


def smuggled(rng: random.Random) -> bytes:
    inner = get(b"/nowhere")
    both = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % (len(inner) + 5)
    return rng.choice((post(both, b"0\r\n\r\n" + inner), post(b"Content-Length: 0\r\n", inner)))


def not_utf8(rng: random.Random) -> bytes:
    body = BODY.replace(b"color", rng.choice((b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\x00", b"\xf5\x80\x80\x80")))
    return post(b"Content-Length: %d\r\n" % len(body), body, rng.choice(PATHS))


def waiting(rng: random.Random) -> bytes:
    """The beginning of a request whose rest never comes."""
    return rng.choice((b"", b"G", b"GET / HTTP/1.1\r\nHost", post(b"Content-Length: 99999\r\n", b"{"), post(b"")[:-1]))


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    noise,
    noise_after_a_request_line,
    noise_for_a_body,
    damaged,
    cut_off,
    wrong_length,
    bad_chunks,
    good_chunks,
    odd_transfer_encoding,
    header_bomb,
    odd_header,
    odd_host,
    odd_target,
    odd_method,
    odd_version,
    other_protocol,
    pipelined,
    smuggled,
    not_utf8,
    waiting,
)
