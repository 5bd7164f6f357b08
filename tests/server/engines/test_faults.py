"""What breaks, breaks for one request where it can, for the running ones where it must, and never hangs anybody."""

import asyncio

import pytest
import torch

from covervlm.server.core.errors import EngineError, EngineOverloaded, EngineUnavailable
from covervlm.server.engines.faults import casts_doubt, for_caller, is_out_of_memory
from tests.server.engines.gated import gated, running, until

QUESTION = "What color is the star?"


def no_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


async def works(engine, ask, answer):
    return (
        engine.ready and (await answer(engine, ask(None, "Hello", max_tokens=2, ignore_eos=True))).choices[0].count == 2
    )


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_shortage_of_memory_is_told_from_bugs(error, memory):
    assert is_out_of_memory(error) == memory
    assert casts_doubt(error) != memory
    assert isinstance(for_caller(error), EngineOverloaded) == memory
    assert str(error) not in str(for_caller(error)) or not str(error)


async def test_a_prompt_without_memory_fails_alone_and_its_group_is_answered(ask, answer, monkeypatch):
    questions = ["Hello", QUESTION, "Describe the image of a star, please, and do so at length.", "How many?"]
    requests = [ask(None, question, max_tokens=5, ignore_eos=True) for question in questions]
    async with gated() as (engine, gate):
        runner = engine._worker._runner
        prefill, groups = runner.prefill, []

        def short_of_memory(prompts, repeats, prefix, **options):
            groups.append(len(prompts))
            if any(len(embeddings) > 20 for embeddings, _ in prompts):
                no_memory()
            return prefill(prompts, repeats, prefix, **options)

        first = engine.generate(ask(None, "Hello", max_tokens=3, ignore_eos=True))
        await anext(first)
        monkeypatch.setattr(runner, "prefill", short_of_memory)
        tasks = [asyncio.create_task(answer(engine, request)) for request in requests]
        await until(lambda: engine._worker.waiting == 4)
        gate.open()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await first.aclose()
        assert groups == [4, 1, 1, 1, 1]
        assert isinstance(results.pop(2), EngineOverloaded)
        monkeypatch.undo()
        requests.pop(2)
        for request, result in zip(requests, results, strict=True):
            assert result.text == (await answer(engine, request)).text


async def test_an_image_without_memory_fails_alone(engine, ask, answer, scene, monkeypatch):
    encode = engine._adapter.encode
    poison = engine._adapter.preprocess(scene(9))["pixel_values"]

    def short_of_memory(inputs, **kwargs):
        return no_memory() if any(torch.equal(i["pixel_values"], poison) for i in inputs) else encode(inputs, **kwargs)

    monkeypatch.setattr(engine._adapter, "encode", short_of_memory)
    results = await asyncio.gather(
        *(answer(engine, ask(scene(number), QUESTION)) for number in (8, 9, 10)), return_exceptions=True
    )
    assert isinstance(results[1], EngineOverloaded)
    assert results[1].retry_after > 0
    assert [result.choices[0].finish_reason for result in results[::2]] == ["stop", "stop"]


async def test_a_step_without_memory_asks_its_requests_to_come_again(engine, ask, answer, monkeypatch):
    with monkeypatch.context() as faulty:
        faulty.setattr(engine._worker._runner, "decode", no_memory)
        with pytest.raises(EngineOverloaded):
            await answer(engine, ask(None, "Hello", max_tokens=5))
    assert await works(engine, ask, answer)


async def test_an_answer_of_nan_fails_alone(ask, answer):
    good = ask(None, "Describe the image.", max_tokens=8, ignore_eos=True)
    async with gated() as (engine, gate):
        runner = engine._worker._runner
        bad = asyncio.create_task(answer(engine, ask(None, "Hello", max_tokens=8, ignore_eos=True)))
        await until(lambda: gate.rows)
        neighbour = asyncio.create_task(answer(engine, good))
        await until(lambda: engine._worker.waiting == 1)
        await gate.step()
        decode, spoilt = runner.decode, []

        def with_nan(tokens, positions):
            logits = decode(tokens, positions)
            if not spoilt:
                spoilt.append(len(tokens))
                logits[0, 3] = float("nan")
            return logits

        runner.decode = with_nan
        gate.open()
        with pytest.raises(EngineError, match="not finite"):
            await bad
        assert spoilt == [2]
        assert (await neighbour).text == (await answer(engine, good)).text
        assert engine.ready


async def test_a_model_whose_weights_are_spoilt_is_not_ready(ask, answer):
    async with running() as engine:
        weight = engine._adapter.lm_head.weight
        with torch.no_grad():
            spoilt = weight.clone()
            weight.fill_(float("nan"))
        try:
            with pytest.raises(EngineError, match="not finite"):
                await answer(engine, ask(None, "Hello", max_tokens=5))
            await until(lambda: not engine.ready)
        finally:
            with torch.no_grad():
                weight.copy_(spoilt)


async def test_a_failed_step_costs_its_answers_and_the_waiting_ones_are_served(ask, answer, monkeypatch):
    async with gated(max_running=1) as (engine, gate):
        lost = asyncio.create_task(answer(engine, ask(None, "Hello", max_tokens=5, ignore_eos=True)))
        await until(lambda: gate.rows)
        waiting = asyncio.create_task(answer(engine, ask(None, "Hello", max_tokens=5, ignore_eos=True)))
        await until(lambda: engine.stats().waiting == 1)
        forward, failures = engine._adapter.language_model.forward, []

        def fails_once(*args, **kwargs):
            if not failures:
                failures.append(1)
                raise RuntimeError("a bug")
            return forward(*args, **kwargs)

        monkeypatch.setattr(engine._adapter.language_model, "forward", fails_once)
        gate.open()
        with pytest.raises(EngineError, match="sent again"):
            await lost
        assert (await waiting).choices[0].count == 5
        assert engine.ready


async def everybody_is_told(engine, gate, ask, answer, breaks):
    """Requests at every stage when the engine breaks; none of them hangs."""
    tasks = [asyncio.create_task(answer(engine, ask(None, "Hello", max_tokens=9, n=2, ignore_eos=True)))]
    await until(lambda: gate.rows)
    tasks += [asyncio.create_task(answer(engine, ask(None, "Hello", max_tokens=9))) for _ in range(4)]
    await until(lambda: engine.stats().waiting == 4)
    breaks()
    gate.open()
    async with asyncio.timeout(60):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, EngineError) for result in results)
    assert all(isinstance(result, EngineUnavailable) for result in results[1:])
    await until(lambda: not engine.ready)
    with pytest.raises(EngineUnavailable):
        await answer(engine, ask(None, "Hello"))


async def test_a_thread_that_dies_tells_everybody_and_the_engine_is_not_ready(ask, answer):
    async with gated(max_running=2) as (engine, gate):

        def dies():
            raise SystemExit

        def breaks():
            engine._worker._drop_dead = dies

        await everybody_is_told(engine, gate, ask, answer, breaks)


async def test_a_model_that_fails_at_every_call_is_not_ready(ask, answer):
    """As after a CUDA error that poisons the process."""
    async with gated(max_running=2) as (engine, gate):

        def poisoned(*args, **kwargs):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        def breaks():
            engine._adapter.language_model.forward = poisoned

        try:
            await everybody_is_told(engine, gate, ask, answer, breaks)
        finally:
            del engine._adapter.language_model.forward


@pytest.mark.parametrize("damage", ["nan", "shape"])
async def test_a_spoilt_cache_entry_is_encoded_again(engine, ask, answer, scene, damage):
    request = ask(scene(0), QUESTION, pruning={"keep_tokens": 64}, max_tokens=10, logprobs=True)
    expected = await answer(engine, request)
    [(key, entry)] = engine._cache._entries.items()
    if damage == "nan":
        with torch.inference_mode():
            entry.tokens[100, 7] = float("nan")
    else:
        object.__setattr__(entry, "tokens", entry.tokens[:300])
    misses = engine.stats().cache_misses
    again = await answer(engine, request)
    assert again.choices[0].tokens == expected.choices[0].tokens
    assert again.prompt.cached_images == 0
    assert engine.stats().cache_misses == misses + 1
    assert engine._cache._entries[key].intact


async def test_a_preprocess_thread_that_fails_costs_one_request(engine, ask, answer, scene, monkeypatch):
    preprocess, bad = engine._adapter.preprocess, scene(9)

    def fails(image):
        return preprocess(image) if image.tobytes() != bad.tobytes() else no_memory()

    monkeypatch.setattr(engine._adapter, "preprocess", fails)
    results = await asyncio.gather(
        *(answer(engine, ask(scene(number), QUESTION)) for number in (8, 9, 10, 11)), return_exceptions=True
    )
    assert isinstance(results.pop(1), EngineOverloaded)
    assert [result.choices[0].finish_reason for result in results] == ["stop"] * 3
    assert engine.stats().waiting == 0
