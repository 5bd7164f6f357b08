"""Where a body holds too much is found without a regular expression, as one would find it."""

import json
import random
import re

from covervlm.server.api import body
from covervlm.server.api.errors import parameter_name

TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}:,]', re.DOTALL)


def place_in(text, deepest, most):
    """The same by a regular expression, which reads strings as JSON writes them."""
    place, name = [], b""
    for number, token in enumerate(TOKEN.finditer(text)):
        match token[0][:1]:
            case b"{" | b"[":
                place.append("" if token[0] == b"{" else 0)
            case b"}" | b"]":
                place.pop()
            case b'"':
                name = token[0][1:-1]
            case b":":
                place[-1] = name[:100].decode(errors="replace")
            case _ if isinstance(place[-1], int):
                place[-1] += 1
        if len(place) > deepest or number > most:
            return parameter_name(place[:4]) if place and isinstance(place[0], str) else None
    return None


def drawn(draw, depth=0):
    kind = draw.random()
    if depth > 7 or kind < 0.2:
        return draw.choice(['a"b', "\\", '\\"', "\\\\", "x[,{:", "a" * draw.randint(90, 110), 1, 12.5, None, "é"])
    items = [drawn(draw, depth + 1) for _ in range(draw.randint(1, 5))]
    return items if kind < 0.6 else {f'{"b" * draw.randint(97, 103)}"\\{i}': item for i, item in enumerate(items)}


def test_the_place_is_found_whatever_strings_and_borders_of_pieces_lie_before_it(monkeypatch):
    monkeypatch.setattr(body, "_DEEPEST", 6)
    monkeypatch.setattr(body, "_MOST_TOKENS", 30)
    monkeypatch.setattr(body, "_PIECE", 16)
    draw, found = random.Random(1), 0
    for _ in range(2000):
        text = json.dumps({"a": drawn(draw), "b": 1}, ensure_ascii=draw.random() < 0.5).encode()
        place = body._fullest_place(text)
        assert place == place_in(text, 6, 30), text
        found += place is not None
    assert found > 500
