"""Text that becomes much more than it was: tokens, prompts of all classes, strings that are looked for."""

import asyncio
import functools
import json

from tests.e2e.attack import images
from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.bodies import chat
from tests.e2e.attack.registry import REFUSED, attack

MIB = 2**20
CHAT = "/v1/chat/completions"
CLASSIFY = "/v1/classify"
SERVED = REFUSED | {200}
PIXEL = images.url(images.png(1, 1))


def text(name: str, unit: str, size: int) -> None:
    @attack(f"{size} MB of chat text: {name}")
    async def send(attacker: Attacker) -> None:
        await attacker.post(CHAT, chat(text=unit * (size * 1_000_000 // len(unit))))


text("one word again and again", "star ", 4)
text("one letter without end", "a", 4)
text("letters that no two are alike", "".join(chr(0x4E00 + i) for i in range(5000)), 4)
text("white space", " \n", 4)


@functools.cache
def classes(names: int, length: int, templates: int, template: int = 0) -> bytes:
    body = {
        "images": [PIXEL],
        "classes": [f"{i} " + "a " * (length // 2) for i in range(names)],
        "templates": ["{} " + f"{i} " + "b " * (template // 2) for i in range(templates)],
    }
    return json.dumps(body).encode()


def prompts(name: str, *numbers: int) -> None:
    make = functools.partial(classes, *numbers)

    @attack(name, make=make, answers=SERVED)
    async def send(attacker: Attacker) -> None:
        await attacker.post(CLASSIFY, make())


prompts("two class names of 2 MB in a hundred templates", 2, 2_000_000, 100)
prompts("a hundred templates of 300 KB around two classes", 2, 2, 100, 300_000)
prompts("a thousand names of 10 KB in a hundred templates", 1000, 10_000, 100)


@attack("a hundred thousand short prompts, from four requests", answers=SERVED)
async def all_prompts(attacker: Attacker) -> None:
    bodies = [classes(10_000 - i, 4, 10) for i in range(4)]
    await asyncio.gather(*(attacker.post(CLASSIFY, body) for body in bodies))


@attack("long class names for a session and a classifier")
async def long_names(attacker: Attacker) -> None:
    body = {"classes": ["a" * 2_000_000, "b" * 2_000_000], "templates": [f"{{}} {i}" for i in range(100)]}
    await attacker.post("/v1/streams", {**body, "horizon": 9})
    await attacker.post("/v1/classifiers", {**body, "name": "a", "images": [PIXEL]})


@attack("2,048 texts of 20 KB to embed")
async def long_texts(attacker: Attacker) -> None:
    await attacker.post("/v1/embeddings", {"input": ["word " * 4000] * 2048})


@attack("four stop strings of 4 MB for a long answer", answers=SERVED)
async def long_stops(attacker: Attacker) -> None:
    stops = [letter * 4_000_000 for letter in "abcd"]
    body = chat(stop=stops, max_tokens=200, ignore_eos=True)
    await asyncio.gather(*(attacker.post(CHAT, body) for _ in range(4)))


@attack("a logit bias for a hundred thousand tokens")
async def large_bias(attacker: Attacker) -> None:
    await attacker.post(CHAT, chat(logit_bias={str(i): 1 for i in range(100_000)}))


@attack("as many guiding words as fit into the context", answers=SERVED)
async def many_words(attacker: Attacker) -> None:
    body = chat(PIXEL, text="star circle red blue " * 100, vision_pruning={"keep_tokens": 64})
    await asyncio.gather(*(attacker.post("/v1/prune", body) for _ in range(4)))


@attack("112 choices of long answers", answers=SERVED)
async def many_choices(attacker: Attacker) -> None:
    body = chat(n=28, max_tokens=400, ignore_eos=True, temperature=1.0)
    await asyncio.gather(*(attacker.post(CHAT, body) for _ in range(4)))
