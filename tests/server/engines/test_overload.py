"""Many requests, few slots: who is served, who is refused, and how soon a slot is free; in steps, not seconds."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
import torch

from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import EngineError, EngineOverloaded, InvalidRequest
from covervlm.server.engines.embedded import mailbox
from covervlm.server.engines.embedded.step_limits import StepLimits
from tests.server.engines.gated import gated, running, until

ENDLESS = {"max_tokens": 400, "ignore_eos": True}


def of(owner, request):
    return replace(request, caller=Caller(owner))


async def test_closing_the_stream_frees_the_row_within_one_decoding_step(ask, answer):
    async with gated() as (engine, gate):
        leaving = engine.generate(ask(None, "Describe the image.", **ENDLESS))
        await anext(leaving)
        staying = asyncio.create_task(answer(engine, ask(None, "Describe the image.", max_tokens=6, ignore_eos=True)))
        await until(lambda: engine._worker.waiting == 1)
        await gate.step()
        assert gate.rows == [1, 2]
        await leaving.aclose()
        await gate.step()
        assert gate.rows == [1, 2, 1]
        gate.open()
        assert (await staying).choices[0].count == 6
    assert max(gate.rows[2:]) == 1


async def test_a_waiting_request_that_is_cancelled_leaves_the_queue_within_one_decoding_step(ask, answer):
    async with gated(max_running=1) as (engine, gate):
        running_one = engine.generate(ask(None, "Describe the image.", **ENDLESS))
        await anext(running_one)
        waiting = [asyncio.create_task(answer(engine, ask(None, "Hello", max_tokens=1))) for _ in range(5)]
        await until(lambda: engine.stats().waiting == 5)
        for task in waiting[1:4]:
            task.cancel()
        await asyncio.gather(*waiting[1:4], return_exceptions=True)
        await gate.step()
        assert engine.stats().waiting == 2
        await running_one.aclose()
        gate.open()
        assert [task.cancelled() for task in waiting] == [False, True, True, True, False]
        assert [(await waiting[i]).choices[0].count for i in (0, 4)] == [1, 1]


async def test_a_newcomer_has_its_first_token_before_the_next_image_is_encoded(ask, answer, scene):
    async with gated(limits=StepLimits(images=2, prompt_tokens=100)) as (engine, gate):
        order = []

        def noted(name, work):
            def call(batch, *args, **kwargs):
                order.append((name, len(batch)))
                return work(batch, *args, **kwargs)

            return call

        running_one = engine.generate(ask(None, "Describe the image.", **ENDLESS))
        await anext(running_one)
        engine._adapter.encode = noted("encode", engine._adapter.encode)
        engine._worker._runner.prefill = noted("prefill", engine._worker._runner.prefill)
        budgets = [{"keep_tokens": 64}, {"keep_tokens": 64}, {"keep_tokens": 8}, {"keep_tokens": 8}, {"method": "none"}]
        newcomers = []
        for i, pruning in enumerate(budgets):
            request = ask(scene(40 + i), "Hello", pruning=pruning, max_tokens=99)
            newcomers.append(asyncio.create_task(answer(engine, request)))
            await until(lambda: engine._worker.waiting == len(newcomers))
        gate.open()
        await asyncio.gather(*newcomers)
        await running_one.aclose()
    # Two prompts of 64 vision tokens exceed a step, two of 8 fit; a prompt longer than a step is read by itself.
    read = [("encode", 2), ("prefill", 1), ("prefill", 1), ("encode", 2), ("prefill", 2), ("encode", 1), ("prefill", 1)]
    assert order == read


def test_a_cpu_takes_smaller_steps_than_a_gpu():
    cpu, gpu = (StepLimits.for_device(torch.device(name)) for name in ("cpu", "cuda:0"))
    assert cpu.images < gpu.images
    assert cpu.prompt_tokens < gpu.prompt_tokens


async def test_a_request_of_another_key_waits_for_one_turn_of_the_greedy_one(ask, answer):
    order = []

    async def served(engine, owner, number):
        await answer(engine, of(owner, ask(None, "Hello", max_tokens=2, ignore_eos=True)))
        order.append((owner, number))

    async with gated(max_running=1, max_waiting=300) as (engine, gate):
        first = engine.generate(of("greedy", ask(None, "Hello", max_tokens=2, ignore_eos=True)))
        await anext(first)
        greedy = [asyncio.create_task(served(engine, "greedy", i)) for i in range(100)]
        await until(lambda: engine.stats().waiting == 100)
        single = asyncio.create_task(served(engine, "single", 0))
        await until(lambda: engine._worker.waiting == 101)
        gate.open()
        await first.aclose()
        await asyncio.gather(*greedy, single)
    assert order.index(("single", 0)) <= 1
    assert sorted(number for owner, number in order if owner == "greedy") == list(range(100))


@pytest.mark.parametrize("n", [1, 7])
async def test_a_key_leaves_an_eighth_of_the_places_to_others_whatever_waits_before_them(ask, answer, n):
    async with gated(max_running=8, max_waiting=300) as (engine, gate):
        request = ask(None, "Hello", n=n, temperature=1.0, max_tokens=300, ignore_eos=True)
        first = engine.generate(ask(None, "Hello", **ENDLESS))
        await anext(first)
        greedy = [asyncio.create_task(answer(engine, of("greedy", request))) for _ in range(14 // n)]
        await until(lambda: engine._worker.waiting == len(greedy))
        gate.open()
        await first.aclose()
        await until(lambda: engine.stats().running == 7)
        other = await answer(engine, of("other", ask(None, "Hello", max_tokens=3, ignore_eos=True)))
        assert other.choices[0].count == 3
        assert not any(task.done() for task in greedy)
        with pytest.raises(InvalidRequest, match="7 answers at once"):
            await answer(engine, of("greedy", replace(request, sampling=replace(request.sampling, n=8))))
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)


async def test_a_key_that_fills_the_queue_leaves_room_for_others(ask, answer):
    async with gated(max_running=1, max_waiting=18) as (engine, gate):
        first = engine.generate(of("greedy", ask(None, "Hello", **ENDLESS)))
        await anext(first)
        tasks = []
        while True:
            tasks.append(asyncio.create_task(answer(engine, of("greedy", ask(None, "Hello", max_tokens=1)))))
            await until(lambda: tasks[-1].done() or engine.stats().waiting == len(tasks))
            if tasks[-1].done():
                break
        with pytest.raises(EngineOverloaded, match="16 requests of this key") as refused:
            await tasks.pop()
        assert refused.value.retry_after > 0
        assert len(tasks) == 16
        other = asyncio.create_task(answer(engine, of("other", ask(None, "Hello", max_tokens=1))))
        await until(lambda: engine.stats().waiting == 17)
        await first.aclose()
        gate.open()
        assert (await other).choices[0].count == 1
        await asyncio.gather(*tasks)


async def test_without_keys_the_queue_is_everybodys(ask, answer):
    async with gated(max_running=1, max_waiting=18) as (engine, gate):
        first = engine.generate(ask(None, "Hello", **ENDLESS))
        await anext(first)
        tasks = [asyncio.create_task(answer(engine, ask(None, "Hello", max_tokens=1))) for _ in range(18)]
        await until(lambda: engine.stats().waiting == 18)
        with pytest.raises(EngineOverloaded, match="18 requests are already waiting"):
            await answer(engine, ask(None, "Hello", max_tokens=1))
        await first.aclose()
        gate.open()
        await asyncio.gather(*tasks)


async def test_a_reader_who_reads_nothing_holds_no_slot(ask, answer):
    request = ask(None, "Describe the image.", max_tokens=50, ignore_eos=True)
    async with running() as engine:
        expected = (await answer(engine, request)).text
        async with contextlib.aclosing(engine.generate(request)) as stream:
            chunks = [await anext(stream), await anext(stream)]
            await until(lambda: not engine.stats().running)
            chunks += [chunk async for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == expected
    assert sum(chunk.tokens for chunk in chunks) == 50


async def test_a_reader_too_far_behind_is_cut_off_and_its_memory_freed(ask, answer, monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_UNREAD", 20)
    async with running() as engine:
        stream = engine.generate(ask(None, "Describe the image.", **ENDLESS))
        await anext(stream)
        await anext(stream)
        await until(lambda: not engine.stats().running)
        [box] = engine._open
        assert box._events.qsize() == 1
        with pytest.raises(EngineError, match="chunks behind"):
            await anext(stream)
        assert (await answer(engine, ask(None, "Hello", max_tokens=15, ignore_eos=True))).choices[0].count == 15
