"""Bodies that cost far more to parse and to check than to send: every answer is a refusal, given at once."""

import functools
import json
from collections.abc import Callable

from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.bodies import repeated
from tests.e2e.attack.registry import REFUSED, attack

MIB = 2**20
CHAT = "/v1/chat/completions"
START = '{"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, '
CLASSES = '{"classes": ["a", "b"], '
ANSWERED = REFUSED | {200}


def body(
    name: str, path: str, make: Callable[[], bytes], *, method: str = "POST", answers: frozenset[int] = REFUSED
) -> None:
    @attack(name, answers=answers, make=make)
    async def send(attacker: Attacker) -> None:
        await attacker.request(method, path, make())


def filled(name: str, path: str, before: str, item: str, after: str, size: int, **options: object) -> None:
    """A body of `size` MiB with as many items as fit."""
    body(name, path, functools.partial(repeated, before, item, after, size * MIB), **options)  # type: ignore[arg-type]


# Lists of what no list may hold: an error for each.
filled("1 MiB of zeros for messages", CHAT, '{"model": "demo", "messages": [', "0", "]}", 1)
filled("4 MiB of zeros for messages", CHAT, '{"model": "demo", "messages": [', "0", "]}", 4)
filled("4 MiB of empty messages", CHAT, '{"model": "demo", "messages": [', "{}", "]}", 4)
CONTENT = '{"model": "demo", "messages": [{"role": "user", "content": ['
CLASSIFIERS, STREAMS, CLUSTERINGS = "/v1/classifiers", "/v1/streams", "/v1/clusterings"


def all_filled(name: str, size: int, *lists: tuple[str, str, str, str]) -> None:
    """One list after another: path, what stands before it, its item and what stands behind."""

    def make() -> list[tuple[str, bytes]]:
        return [(path, repeated(before, item, after, size * MIB)) for path, before, item, after in lists]

    @attack(name, make=make)
    async def send(attacker: Attacker) -> None:
        for path, made in make():
            await attacker.post(path, made)


all_filled(
    "4 MiB of what is no content part, of each kind",
    4,
    (CHAT, CONTENT, "0", "]}]}"),
    (CHAT, CONTENT, "{}", "]}]}"),
    (CHAT, CONTENT, '{"type":"x"}', "]}]}"),
    (CHAT, CONTENT, '{"type":"text"}', "]}]}"),
)
all_filled(
    "4 MiB of zeros for each other list of numbers and texts",
    4,
    (CLASSIFIERS, CLASSES + '"name": "a", "uploads": [', "0", "]}"),
    ("/v1/embeddings", '{"input": [', "0", "]}"),
    ("/v1/classify", '{"images": ["x"], "classes": [', "0", "]}"),
    (STREAMS, CLASSES + '"horizon": 9, "templates": [', "0", "]}"),
    (CLUSTERINGS, '{"aspect": "color", "images": ["x", "x"], "words": [', "0", "]}"),
    (CHAT, START + '"stop": [', "0", "]}"),
    (CHAT, START + '"vision_pruning": {"keep_tokens": [', "0", "]}}"),
)
all_filled(
    "4 MiB of empty objects for each list of images",
    4,
    (CLASSIFIERS, CLASSES + '"name": "a", "images": [', "{}", "]}"),
    ("/v1/classify", CLASSES + '"images": [', "{}", "]}"),
    (CLUSTERINGS, '{"aspect": "color", "images": [', "{}", "]}"),
)

# Lists of what is right, and of which there is far too much.
filled("16 MiB of empty texts in one message", CHAT, CONTENT, '{"type":"text","text":""}', "]}]}", 16)
MESSAGES = '{"model": "demo", "messages": ['
filled("16 MiB of empty messages of users", CHAT, MESSAGES, '{"role":"user","content":""}', "]}", 16)
filled("16 MiB of budgets", CHAT, START + '"vision_pruning": {"keep_tokens": [', "1", "]}}", 16)
filled("16 MiB of ids of uploads", "/v1/classifiers", CLASSES + '"name": "a", "uploads": [', '"a"', "]}", 16)

# Fields that are ignored or refused, and read all the same.
filled("60 MiB of empty lists in metadata", CHAT, START + '"metadata": [', "[]", "]}", 60, answers=ANSWERED)
filled("60 MiB of numbers in metadata", CHAT, START + '"metadata": [', "1", "]}", 60, answers=ANSWERED)
filled("60 MiB of empty objects for tools", CHAT, START + '"tools": [', "{}", "]}", 60)
filled("60 MiB of half surrogate pairs for a model", CHAT, '{"model": "', "\\ud800", '"}', 60)


@functools.cache
def keys(before: str, after: str, size: int) -> bytes:
    return (before + ",".join(f'"k{i}":0' for i in range(size // 12)) + after).encode()


body("4 MiB of unknown fields", CHAT, functools.partial(keys, START, "}", 4 * MIB))
KEYS_OF_PART = CONTENT + '{"type": "text", "text": "hi", '
body("4 MiB of unknown fields in a content part", CHAT, functools.partial(keys, KEYS_OF_PART, "}]}]}", 4 * MIB))
body(
    "60 MiB of keys in metadata",
    CHAT,
    functools.partial(keys, START + '"metadata": {', "}}", 60 * MIB),
    answers=ANSWERED,
)
filled("16 MiB of one field again and again", CHAT, "{", '"model": "demo"', "}", 16)

# Depth and length.
body("60 MiB of opening brackets", CHAT, lambda: b"[" * (60 * MIB))
body("60 MiB of opening objects", CHAT, lambda: b'{"a":' * (12 * MIB))
body("30 MiB of lists in lists, closed again", CHAT, lambda: b"[" * (15 * MIB) + b"]" * (15 * MIB))
body("60 MiB of white space", CHAT, lambda: b" " * (60 * MIB))
body("60 MiB of digits for a seed", CHAT, lambda: (START + '"seed": ').encode() + b"9" * (60 * MIB) + b"}")
body(
    "16 MiB of digits behind a point",
    CHAT,
    lambda: (START + '"top_p": 0.').encode() + b"1" * (16 * MIB) + b"}",
    answers=ANSWERED,
)
filled("16 MiB of long numbers for budgets", CHAT, START + '"vision_pruning": {"keep_tokens": [', "9" * 4000, "]}}", 16)
body("60 MiB of a model's name", CHAT, lambda: json.dumps({"model": "x" * (60 * MIB), "messages": []}).encode())
body("60 MiB of a field's name", CHAT, lambda: (START + '"' + "k" * (60 * MIB) + '": 1}').encode())
body("57 MiB of text with one escape", CHAT, lambda: b'{"model": "\\n' + b"A" * (57 * MIB) + b'", "messages": []}')
body(
    "57 MiB of text with one character of four bytes",
    CHAT,
    lambda: b'{"model": "' + b"A" * (57 * MIB) + "\U0001f600".encode() + b'", "messages": []}',
)
body(
    "60 MiB of escaped characters in a session's id",
    "/v1/classify",
    functools.partial(repeated, CLASSES + '"images": ["x"], "classifier": "', "\\u0041", '"}', 60 * MIB),
    answers=REFUSED | {404},
)
