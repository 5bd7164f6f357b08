"""Which answers are drawn, what may wait, what becomes of it, and that nobody's answer is changed by it."""

import asyncio
import gc
import weakref
from collections import Counter

import pytest
from PIL import Image

from covervlm.server.core.agreement import AnswerScores
from covervlm.server.core.caller import Caller, InFlight
from covervlm.server.core.errors import EngineOverloaded, InvalidRequest
from covervlm.server.core.generation import (
    GenerationChunk,
    GenerationRequest,
    ImagePart,
    Message,
    PruningPolicy,
    SamplingParams,
)
from covervlm.server.shadow.labels import budget_label
from covervlm.server.shadow.shadows import ShadowConfig, Shadows
from covervlm.server.shadow.waiting import OLDEST
from tests.server.api.scripted import Gate, ScriptedEngine, prompt_report

PIXELS = 100 * 50


class Engine(ScriptedEngine):
    """Scores everything alike, and does what `before` says first."""

    def __init__(self, *steps: Exception | Gate | None):
        super().__init__()
        self.scored: list[GenerationRequest] = []
        self.steps = list(steps)

    async def score(self, request, answer):
        self.scored.append(request)
        match self.steps.pop(0) if self.steps else None:
            case Exception() as error:
                raise error
            case Gate() as gate:
                gate.reached.set()
                await gate.opened.wait()
        return AnswerScores([-0.5] * len(answer), list(answer), [-0.5] * len(answer))


class Observer:
    def __init__(self):
        self.outcomes = Counter()

    def compared(self, method, budget, seen):
        self.outcomes["compared"] += 1

    def dropped(self, why, count):
        self.outcomes[why] += count


def request(owner="a", *, pruning=None, image=None, **sampling):
    part = ImagePart(image or Image.new("RGB", (100, 50)), "digest")
    policy = PruningPolicy(**({"keep_tokens": 16} if pruning is None else pruning))
    params = SamplingParams(**{"temperature": 0.0} | sampling)
    return GenerationRequest("r", (Message("user", (part, "What?")),), params, policy, caller=Caller(owner))


class Setup:
    """Shadows over a scripted engine, with a clock of the test's."""

    def __init__(self, *steps, limit=2**30, **config):
        self.engine, self.observer, self.memory = Engine(*steps), Observer(), InFlight(limit)
        self.shadows = Shadows(self.engine, self.memory, self.observer, ShadowConfig(**{"share": 1.0} | config))
        self.now = 0.0
        self.shadows._waiting._clock = lambda: self.now

    async def answer(self, asked):
        return [chunk async for chunk in self.shadows.watch(asked, self.engine.generate(asked))]

    async def settled(self, count):
        async with asyncio.timeout(10):
            while self.observer.outcomes.total() < count:
                await asyncio.sleep(0)


async def drawn(share, seed, count=4000):
    setup = Setup(share=share, seed=seed, most=10**6, most_bytes=2**40, limit=2**50)
    chunks = setup.engine.generate(request())
    return [setup.shadows.watch(request(), chunks) is not chunks for _ in range(count)]


async def test_the_share_that_was_asked_for_is_drawn_and_the_seed_decides_which():
    for share in (0.01, 0.3):
        picks = await drawn(share, 1)
        # Five standard deviations of a binomial.
        assert abs(sum(picks) - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5
        assert picks == await drawn(share, 1) != await drawn(share, 2)
    assert all(await drawn(1.0, 0, 100))


@pytest.mark.parametrize("pruning", [{"method": "none", "keep_tokens": 16}, {}, {"keep_tokens": 576}])
async def test_what_was_not_pruned_is_not_compared(pruning):
    setup = Setup()
    await setup.answer(request(pruning=pruning))
    assert len(setup.shadows) == 0


async def test_answers_of_failed_and_of_cancelled_requests_are_not_compared():
    setup = Setup()
    setup.engine.script = lambda asked: [
        GenerationChunk(0, "a", 1, prompt=prompt_report(asked), token_ids=(1,)),
        RuntimeError("bug"),
    ]
    with pytest.raises(RuntimeError):
        await setup.answer(request())
    setup.engine.script = lambda asked: [
        GenerationChunk(0, "a", 1, prompt=prompt_report(asked), token_ids=(1,)),
        GenerationChunk(0, "b", 1, token_ids=(2,), finish_reason="stop"),
    ]
    stream = setup.shadows.watch(request(), setup.engine.generate(request()))
    await anext(stream)
    await stream.aclose()
    assert setup.engine.released == ["r", "r"]
    assert len(setup.shadows) == 0


async def test_both_models_read_the_first_choice_under_an_owner_of_its_own():
    setup = Setup()
    asked = request("key", pruning={"keep_tokens": 16, "method": "random"}, n=2, seed=7, temperature=1.0)
    assert [c.token_ids for c in await setup.answer(asked)] == [(100,), (100,), (101,), (101,), (102,), (102,)]
    setup.shadows.start()
    await setup.settled(1)
    await setup.shadows.stop()
    unpruned, pruned = setup.engine.scored
    assert not unpruned.pruning.prunes
    assert (pruned.pruning.method, pruned.pruning.keep_tokens, pruned.selection_seed) == ("random", 16, 7)
    assert pruned.caller.owner == unpruned.caller.owner != "key"
    assert "r" not in (pruned.request_id, unpruned.request_id)
    assert setup.observer.outcomes == {"compared": 1}


async def test_number_bytes_and_owners_shares_of_what_waits_are_bounded():
    setup = Setup(most=10)
    for _ in range(20):
        await setup.answer(request("greedy"))
    assert len(setup.shadows) == 8
    for owner in ("modest", "other", "late"):
        await setup.answer(request(owner))
    assert len(setup.shadows) == 10
    assert setup.observer.outcomes == {"full": 13}
    few = Setup(most_bytes=3 * 4 * PIXELS + 1000)
    for _ in range(5):
        await few.answer(request())
    assert (len(few.shadows), few.observer.outcomes) == (3, {"memory": 2})
    assert few.memory.bytes == few.shadows.bytes > 3 * 4 * PIXELS


async def test_memory_is_counted_and_given_back_whatever_becomes_of_an_answer():
    image = weakref.ref(big := Image.new("RGB", (100, 50)))
    refusals = [InvalidRequest("", code="context_length_exceeded"), EngineOverloaded("", retry_after=1)]
    setup = Setup(*refusals, None, None, ValueError("bug"))
    refusals.clear()  # once raised, they hold it as well
    for _ in range(3):
        await setup.answer(request(image=big))
    await setup.answer(request())  # the log that pytest keeps holds its failure, and the image by that
    del big
    assert setup.memory.bytes >= 4 * 4 * PIXELS
    setup.shadows.start()
    await setup.settled(4)
    assert setup.observer.outcomes == {"failed": 1, "too_long": 1, "memory": 1, "compared": 1}
    assert (setup.memory.bytes, setup.memory.held_by, setup.shadows.bytes) == (0, {}, 0)
    setup.engine.scored.clear()
    setup.engine.requests.clear()
    gc.collect()
    assert image() is None
    await setup.shadows.stop()


async def test_a_request_that_needs_the_room_gets_all_that_shadows_hold():
    gate = Gate()
    setup = Setup(gate, limit=20 * PIXELS)
    for _ in range(9):
        await setup.answer(request())
    assert setup.observer.outcomes == {"memory": 7}  # no more than half of the memory
    setup.shadows.start()
    await gate.reached.wait()
    caller = Caller(memory=setup.memory)
    caller.hold(20 * PIXELS)
    assert setup.memory.bytes == 20 * PIXELS
    assert setup.observer.outcomes == {"memory": 9}
    with pytest.raises(EngineOverloaded):
        caller.hold(1)
    await setup.answer(request())
    caller.release()
    await setup.answer(request())
    await setup.settled(11)
    assert setup.observer.outcomes == {"memory": 10, "compared": 1}
    assert setup.memory.bytes == 0
    await setup.shadows.stop()


async def test_pictures_are_not_kept_for_longer_than_promised(monkeypatch):
    setup = Setup(Gate())
    later = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda seconds, call: later.append((seconds, call)))
    await setup.answer(request())
    setup.now = OLDEST - 1
    await setup.answer(request())
    setup.now = OLDEST
    assert len(setup.shadows) == 2
    [(seconds, expire), _] = later
    expire()
    assert (seconds, len(setup.shadows), setup.observer.outcomes) == (OLDEST, 1, {"expired": 1})
    setup.shadows.start()
    await setup.shadows.stop()
    assert setup.observer.outcomes == {"expired": 1, "stopped": 1}
    assert setup.memory.bytes == 0


async def test_stopping_drops_what_runs_and_what_waits():
    gate = Gate()
    setup = Setup(gate)
    for _ in range(3):
        await setup.answer(request())
    setup.shadows.start()
    await gate.reached.wait()
    await setup.shadows.stop()
    assert setup.observer.outcomes == {"stopped": 3}
    assert (setup.memory.bytes, len(setup.engine.scored)) == (0, 1)


def test_only_budgets_that_the_settings_know_have_names():
    known = {"64", "0.25"}
    labels = [
        {"keep_tokens": 64},
        {"keep_tokens": 65},
        {"keep_ratio": 0.25},
        {"keep_tokens": (64, 64)},
        {"coverage": 0.9},
    ]
    assert [budget_label(PruningPolicy(**one), known) for one in labels] == ["64", "other", "0.25", "other", "other"]
