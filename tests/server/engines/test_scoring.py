"""Answers are scored as they were written, only while no request is in the engine, and without a trace."""

import asyncio
import threading
from dataclasses import replace

import pytest

from covervlm.server.core.errors import EngineError, EngineUnavailable, InvalidRequest
from covervlm.server.core.generation import GenerationRequest, Message, PruningPolicy, SamplingParams
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.engines.embedded.step_limits import StepLimits
from tests.server.conftest import image_part
from tests.server.engines.gated import gated, running, until
from tests.server.models.tiny_internvl import save_tiny_internvl
from tests.server.models.tiny_llava import save_tiny_llava_next
from tests.server.models.tiny_onevision import save_tiny_onevision
from tests.server.models.tiny_qwen import save_tiny_qwen
from tests.server.models.tiny_qwen3 import save_tiny_qwen3

CHECKPOINTS = (save_tiny_llava_next, save_tiny_onevision, save_tiny_internvl, save_tiny_qwen, save_tiny_qwen3)
PRUNED = {"keep_tokens": 16}


class Pieces:
    """Holds every piece of a scoring's prompt until it is let through. `begun`: how many have begun."""

    def __init__(self, engine, failing: Exception | None = None):
        self.begun = 0
        self._permits = threading.Semaphore(0)
        runner = engine._worker._runner
        read_on = runner.read_on

        def held(*arguments):
            self.begun += 1
            self._permits.acquire()
            if failing is not None:
                raise failing
            return read_on(*arguments)

        runner.read_on = held

    async def let(self, count):
        """Let so many pieces through, and wait until the one after them has begun."""
        begun = self.begun
        self._permits.release(count)
        await until(lambda: self.begun >= begun + count)

    def open(self):
        self._permits.release(10**6)


@pytest.mark.parametrize("save", CHECKPOINTS, ids=lambda save: save.__name__)
async def test_read_in_pieces_every_architecture_scores_what_it_wrote_token_by_token(tmp_path, save, scene, answer):
    """Against the log probabilities of decoding, which reads the answer one token at a time."""
    save(tmp_path)
    limits = StepLimits(images=2, prompt_tokens=8 * 7)
    engine = TransformersEngine(TransformersEngineConfig(str(tmp_path), threads=1, limits=limits))
    await engine.start()
    try:
        for policy in ({}, {"keep_tokens": 5}):
            message = Message("user", (image_part(scene(1)), "What is it? Tell me all of it."))
            sampling = SamplingParams(max_tokens=16, logprobs=True, seed=3, ignore_eos=True)
            request = GenerationRequest("test", (message,), sampling, PruningPolicy(**policy))
            chunks = (await answer(engine, request)).chunks
            tokens = [token for chunk in chunks for token in chunk.token_ids]
            # The detokenizer leaves out the entries of tokens without text.
            written = {entry.id: entry.logprob for chunk in chunks for entry in chunk.logprobs}
            scores = await engine.score(request, tokens)
            assert len(scores.logprobs) == len(scores.best) == len(tokens) == 16
            last = {
                token: value for token, value in zip(tokens, scores.logprobs, strict=True) if tokens.count(token) == 1
            }
            assert len(last) > 3
            assert {t: v for t, v in last.items() if t in written} == pytest.approx(
                {t: v for t, v in written.items() if t in last}, abs=1e-3
            )
    finally:
        await engine.stop()


async def test_nothing_is_scored_while_an_answer_runs(ask, answer, scene):
    async with gated() as (engine, gate):
        pieces = Pieces(engine)
        pieces.open()
        running_answer = asyncio.create_task(answer(engine, ask(scene(0), "What is it?", max_tokens=4)))
        await until(lambda: gate.rows)
        scoring = asyncio.create_task(engine.score(ask(scene(1), "What is it?"), [5, 6, 7]))
        await gate.step()
        await gate.step()
        assert pieces.begun == 0
        assert (engine.stats().running, engine.stats().waiting) == (1, 0)
        gate.open()
        await running_answer
        assert len((await scoring).logprobs) == 3


async def test_a_request_that_arrives_waits_for_one_piece_and_the_scoring_then_goes_on(ask, answer, scene):
    async with running() as engine:
        wanted = await answer(engine, ask(scene(0), "What is it?", max_tokens=4, logprobs=True))
        alone = await engine.score(ask(scene(1), "What is it?"), [5, 6, 7])
        pieces = Pieces(engine)
        scoring = asyncio.create_task(engine.score(ask(scene(1), "What is it?"), [5, 6, 7]))
        await until(lambda: pieces.begun == 1)
        await pieces.let(1)
        request = asyncio.create_task(answer(engine, ask(scene(0), "What is it?", max_tokens=4, logprobs=True)))
        await until(lambda: engine.stats().waiting == 1 and not engine._worker._arriving)
        pieces._permits.release()
        assert (await request).choices[0].tokens == wanted.choices[0].tokens
        await until(lambda: pieces.begun == 3)  # nothing of it was lost
        assert not scoring.done()
        pieces.open()
        assert await scoring == alone


async def test_nothing_is_scored_while_somebody_is_expected(ask, scene):
    """While a body is read or an embedding computed, the engine has nothing to do, but somebody waits."""
    async with running() as engine:
        pieces = Pieces(engine)
        with engine.expected():
            scoring = asyncio.create_task(engine.score(ask(scene(1), "What is it?"), [5, 6, 7]))
            await until(lambda: engine._worker._scorings)
            assert not engine._worker._may_score()
        pieces.open()
        assert len((await scoring).logprobs) == 3


async def test_a_scoring_leaves_no_trace_in_caches_counts_and_later_answers(ask, answer, scene):
    async def conversation(engine, *, scored):
        first = ask(scene(0), "What is it?", pruning=PRUNED, max_tokens=6)
        told = await answer(engine, first)
        tokens = [token for chunk in told.chunks for token in chunk.token_ids]
        if scored:
            for policy in (PruningPolicy("none"), first.pruning):
                await engine.score(replace(first, pruning=policy), tokens)
            await engine.score(ask(scene(9), "What else?"), tokens)
        second = await answer(engine, first)
        third = await answer(engine, replace(first, pruning=PruningPolicy("none")))
        reports = [
            (one.prompt.cached_tokens, one.prompt.cached_images, one.prompt.prompt_tokens, one.text)
            for one in (told, second, third)
        ]
        await until(lambda: not engine.stats().running)  # the last answer's prompt is remembered as its row leaves
        return reports, engine.stats()

    async with running() as one, running() as other:
        assert await conversation(one, scored=True) == await conversation(other, scored=False)


async def test_a_scoring_that_fails_or_is_cancelled_costs_nobody_anything(ask, answer, scene):
    request = ask(scene(0), "What is it?", max_tokens=4)
    async with running() as engine:
        wanted = (await answer(engine, request)).text
        read_on = engine._worker._runner.read_on
        for error, message in ((RuntimeError("out of memory"), "memory"), (ValueError("bug"), "failed")):
            pieces = Pieces(engine, error)
            pieces.open()
            with pytest.raises(EngineError, match=message):
                await engine.score(request, [5])
            assert engine.ready
            assert (await answer(engine, request)).text == wanted
            engine._worker._runner.read_on = read_on
        pieces = Pieces(engine)
        scoring = asyncio.create_task(engine.score(request, [5]))
        await until(lambda: pieces.begun == 1)
        scoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scoring
        pieces.open()
        assert (await answer(engine, request)).text == wanted
        await until(lambda: not engine._worker._scorings)
        assert pieces.begun == 1


async def test_what_is_too_long_for_the_model_is_refused(ask, scene):
    async with running() as engine:
        with pytest.raises(InvalidRequest) as refused:
            await engine.score(ask(scene(0), "What is it?"), [5] * engine.info.context_length)
        assert refused.value.code == "context_length_exceeded"


async def test_stopping_does_not_wait_for_scorings(ask, scene):
    async with running() as engine:
        pieces = Pieces(engine)
        scorings = [asyncio.create_task(engine.score(ask(scene(0), "What is it?"), [5])) for _ in range(2)]
        await until(lambda: pieces.begun == 1)
        engine._worker.drain()
        pieces.open()
        for failed in await asyncio.gather(*scorings, return_exceptions=True):
            assert isinstance(failed, EngineUnavailable)
        assert pieces.begun == 1


async def test_where_memory_is_short_a_request_takes_back_what_a_scoring_holds(ask, answer, scene):
    async with running() as engine:
        engine._worker._keeps_scoring = False  # as on a GPU
        alone = await engine.score(ask(scene(1), "What is it?"), [5, 6, 7])
        pieces = Pieces(engine)
        scoring = asyncio.create_task(engine.score(ask(scene(1), "What is it?"), [5, 6, 7]))
        await until(lambda: pieces.begun == 1)
        request = asyncio.create_task(answer(engine, ask(scene(0), "What is it?", max_tokens=2)))
        await until(lambda: engine.stats().waiting == 1 and not engine._worker._arriving)
        pieces.open()
        await request
        assert await scoring == alone
