"""`covervlm serve --engine vllm` under attack: everybody else notices little of it, and nothing of it stays.

The attacks and the measure are those of tests/e2e/attack, here for what reaches vLLM or passes by it on another way.
"""

import pytest

from tests.e2e.attack.attacks import TABLE
from tests.e2e.attack.measure import Attackers, measured
from tests.e2e.attack.served import Served

pytestmark = [pytest.mark.attack, pytest.mark.timeout(900)]

ENGINE = ("--engine", "vllm", "--vllm-args=--enforce-eager --num-gpu-blocks-override 128")
"""With room for a few thousand tokens: more is memory that the first requests take, and that nobody gives back."""
NAMES = (
    "4 MiB of zeros for messages",
    "60 MiB of empty lists in metadata",
    "57 MiB of text with one character of four bytes",
    "4 MB of chat text: one word again and again",
    "two class names of 2 MB in a hundred templates",
    "four stop strings of 4 MB for a long answer",
    "a logit bias for a hundred thousand tokens",
    "as many guiding words as fit into the context",
    "112 choices of long answers",
    "a bad image beside seven large ones in a chat",
    "a clip whose last frame is bad",
    "large pictures from eight callers at once",
    "a picture of 1 x 4000 pixels on every route",
    "a JPEG of thousands of scans on every route",
    "2 MiB of one-byte chunks without a key",
    "forty callers of one key at once",
    "64 images from a server that drips",
    "two dozen requests with large pictures, and nobody who waits",
    "a hundred long answers, and nobody who waits",
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("attack") / "data", *ENGINE)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def attackers():
    attackers = Attackers()
    yield attackers
    attackers.end()


@pytest.mark.parametrize("name", NAMES)
async def test_everybody_else_goes_on_during(name, served, attackers):
    figures = await measured(served, TABLE[name], attackers)
    print(figures)
    assert not figures.problems
