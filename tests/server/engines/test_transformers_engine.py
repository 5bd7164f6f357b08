import asyncio
import contextlib
import itertools

import pytest
import torch

from covervlm.pruners import PruneInput, get_pruner
from covervlm.server.core.errors import EngineError, EngineOverloaded, EngineUnavailable, InvalidRequest
from covervlm.server.demo import model_path
from covervlm.server.engines.embedded import engine as engine_module
from covervlm.server.engines.embedded import packed_weights
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.engines.embedded.kv_slots import KVSlots
from covervlm.server.engines.embedded.model_runner import ModelRunner
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.models.processor import visual_words
from tests.server.engines.stepped import Replayed

QUESTIONS = [
    "What color is the star?",
    "Describe the image.",
    "How many objects are there?",
    "Is there a red circle in the image?",
    "What do you see in this image?",
    "Where is the blue square?",
]


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def shown(plain, ids) -> list[str]:
    return [text for t in ids if (text := plain.processor.tokenizer.decode([t], skip_special_tokens=True))]


@torch.inference_mode()
def generate(plain, image, question: str, new_tokens: int) -> list[str]:
    """transformers' own greedy generate, as one string per token that shows."""
    content = ([{"type": "image"}] if image is not None else []) + [{"type": "text", "text": question}]
    text = plain.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = plain.processor(images=image, text=text, return_tensors="pt")
    out = plain.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return shown(plain, out[0, inputs["input_ids"].shape[1] :])


@torch.inference_mode()
def generate_pruned(plain, image, question: str, keep: int, new_tokens: int) -> list[str]:
    """A slow reference: selection and embeddings built by hand, then one forward over everything for each token."""
    model, processor, tokenizer = plain.model, plain.processor, plain.processor.tokenizer
    pixels = processor.image_processor(image, return_tensors="pt").pixel_values
    features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
    tokens = model.model.multi_modal_projector(features)
    embed = model.get_input_embeddings()
    words = tokenizer("".join(f" {w}" for w in visual_words(question)), add_special_tokens=False).input_ids
    [kept] = get_pruner("mmtok").select([PruneInput(tokens, features, embed(torch.tensor(words)))], keep)
    before = tokenizer("USER: ").input_ids
    after = tokenizer(f"\n{question} ASSISTANT:", add_special_tokens=False).input_ids
    sequence = torch.cat([embed(torch.tensor(before)), tokens[kept], embed(torch.tensor(after))])
    answer: list[int] = []
    while len(answer) < new_tokens and tokenizer.eos_token_id not in answer:
        hidden = model.model.language_model(inputs_embeds=sequence[None], use_cache=False).last_hidden_state
        answer.append(int(model.lm_head(hidden[0, -1]).argmax()))
        sequence = torch.cat([sequence, embed(torch.tensor(answer[-1:]))])
    return shown(plain, answer)


async def test_a_model_in_memory_is_served_and_kernels_are_compiled_for_its_device_and_dtype(monkeypatch):
    compiled = []
    monkeypatch.setattr(engine_module, "warm_up", lambda *device, **inputs: compiled.append((*device, inputs)))
    adapter = load_adapter(Checkpoint(model_path(), "cpu", "bfloat16"))
    engine = TransformersEngine(TransformersEngineConfig("nowhere", threads=1), load=lambda checkpoint: adapter)
    await engine.start()
    await engine.stop()
    assert engine.info.dtype == "bfloat16"
    assert compiled == [(torch.device("cpu"), {"tokens": (576,), "dtype": torch.bfloat16})]


async def test_unpruned_answers_equal_transformers_generate_token_for_token(engine, plain, ask, answer, scene):
    for number, question in enumerate(QUESTIONS):
        got = await answer(engine, ask(scene(number), question, max_tokens=30, logprobs=True))
        assert got.choices[0].tokens == generate(plain, scene(number), question, 30)


async def test_a_budget_of_all_tokens_or_more_is_the_unpruned_model(engine, plain, ask, answer, scene):
    for keep in (576, 10**9):
        got = await answer(
            engine, ask(scene(1), QUESTIONS[1], pruning={"keep_tokens": keep}, max_tokens=20, logprobs=True)
        )
        assert got.choices[0].tokens == generate(plain, scene(1), QUESTIONS[1], 20)
        assert got.prompt.images[0].kept == got.prompt.images[0].total == 576


@pytest.mark.parametrize("keep", [1, 16, 64])
async def test_pruned_answers_equal_a_slow_reference(engine, plain, ask, answer, scene, keep):
    for number, question in enumerate(QUESTIONS[:3]):
        request = ask(scene(number), question, pruning={"keep_tokens": keep}, max_tokens=20, logprobs=True)
        got = await answer(engine, request)
        assert got.choices[0].tokens == generate_pruned(plain, scene(number), question, keep, 20)


async def test_prompt_tokens_fall_by_the_tokens_dropped(engine, ask, answer, scene):
    full = await answer(engine, ask(scene(0), QUESTIONS[0]))
    pruned = await answer(engine, ask(scene(0), QUESTIONS[0], pruning={"keep_tokens": 64}))
    assert full.prompt.prompt_tokens - pruned.prompt.prompt_tokens == 512


async def test_answers_with_packed_weights_equal_generate(monkeypatch, plain, ask, answer, scene):
    monkeypatch.setattr(packed_weights, "_SMALLEST", 1)
    packed = TransformersEngine(TransformersEngineConfig(str(model_path())))
    await packed.start()
    try:
        for number, question in enumerate(QUESTIONS):
            got = await answer(packed, ask(scene(number), question, max_tokens=20, logprobs=True))
            assert got.choices[0].tokens == generate(plain, scene(number), question, 20)
    finally:
        await packed.stop()


async def test_steps_replayed_from_slots_answer_as_generate_does_while_rows_come_and_go(
    monkeypatch, plain, ask, answer, scene
):
    """As on a GPU, but for the graph, in whose place the step of the time when it was captured is run again."""
    graphs: list[Replayed] = []

    def slots(runner: ModelRunner) -> KVSlots:
        graphs.append(Replayed())
        return KVSlots(runner._step, graphs[-1], 2**30)

    monkeypatch.setattr(ModelRunner, "_empty_batch", slots)
    replaying = TransformersEngine(TransformersEngineConfig(str(model_path()), max_running=3))
    await replaying.start()
    try:
        asked = [(number, question) for number in range(2) for question in QUESTIONS]
        requests = [ask(scene(n), question, max_tokens=5 + 4 * n, logprobs=True) for n, question in asked]
        answers = await asyncio.gather(*(answer(replaying, one) for one in requests))
        for (number, question), got in zip(asked, answers, strict=True):
            assert got.choices[0].tokens == generate(plain, scene(number), question, 5 + 4 * number)
    finally:
        await replaying.stop()
    assert sum(one.replays for one in graphs) > sum(one.captures for one in graphs) > 0


async def test_text_without_an_image_equals_generate(engine, plain, ask, answer):
    got = await answer(engine, ask(None, "Describe the image.", max_tokens=15, logprobs=True))
    assert got.choices[0].tokens == generate(plain, None, "Describe the image.", 15)
    assert got.prompt.images == ()


async def test_an_image_without_text_is_pruned_by_the_image_alone(engine, ask, answer, scene):
    mmtok = await answer(engine, ask(scene(0), "", pruning={"keep_tokens": 20, "return_indices": True}))
    vision = await answer(
        engine, ask(scene(0), "", pruning={"keep_tokens": 20, "method": "vision_coverage", "return_indices": True})
    )
    assert mmtok.prompt.images[0].indices == vision.prompt.images[0].indices


def mixed_requests(ask, scene, count: int):
    """Requests that differ in picture, question, budget, method and sampling."""
    budgets = itertools.cycle(
        [{}, {"keep_tokens": 64}, {"keep_tokens": 7, "method": "random"}, {"keep_ratio": 0.1, "method": "uniform"}]
    )
    samplings = itertools.cycle(
        [
            {"max_tokens": 25},
            {"temperature": 1.3, "seed": 5, "max_tokens": 12, "ignore_eos": True},
            {"temperature": 0.8, "seed": 6, "top_p": 0.9, "top_k": 20, "n": 2, "max_tokens": 9, "ignore_eos": True},
            {"repetition_penalty": 1.3, "max_tokens": 17, "ignore_eos": True},
            {"presence_penalty": 0.7, "frequency_penalty": 0.4, "max_tokens": 21},
            {"temperature": 1.0, "seed": 7, "min_p": 0.05, "max_tokens": 3, "ignore_eos": True},
        ]
    )
    return [
        ask(scene(i % 4), QUESTIONS[i % len(QUESTIONS)], pruning=next(budgets), logprobs=True, **next(samplings))
        for i in range(count)
    ]


async def test_sixteen_concurrent_requests_equal_their_single_answers(engine, ask, answer, scene):
    requests = mixed_requests(ask, scene, 16)
    together = await asyncio.gather(*(answer(engine, request) for request in requests))
    for request, batched in zip(requests, together, strict=True):
        alone = await answer(engine, request)
        assert [c.tokens for c in batched.choices] == [c.tokens for c in alone.choices]
        assert [c.text for c in batched.choices] == [c.text for c in alone.choices]
        assert batched.prompt.images == alone.prompt.images or all(
            (a.kept, a.coverage) == (b.kept, b.coverage)
            for a, b in zip(batched.prompt.images, alone.prompt.images, strict=True)
        )


async def test_requests_that_join_and_leave_at_every_step_disturb_nobody(engine, plain, ask, answer, scene):
    long = ask(scene(0), QUESTIONS[1], max_tokens=30, ignore_eos=True, logprobs=True)
    expected = (await answer(engine, long)).choices[0].tokens
    joiners = []
    tokens = []
    async for chunk in engine.generate(long):
        tokens += [entry.token for entry in chunk.logprobs]
        # One newcomer for every token, each staying a different number of steps.
        step = len(tokens)
        request = ask(scene(step % 3), QUESTIONS[0], pruning={"keep_tokens": 8 * step + 8}, max_tokens=1 + step % 5)
        joiners.append(asyncio.create_task(answer(engine, request)))
    assert tokens == expected
    finished = await asyncio.gather(*joiners)
    assert all(1 <= done.choices[0].count <= 5 for done in finished)


async def test_closing_the_stream_frees_the_row(engine, ask, scene):
    endless = ask(scene(0), QUESTIONS[1], max_tokens=400, ignore_eos=True)
    async with contextlib.aclosing(engine.generate(endless)) as stream:
        await anext(stream)
        await anext(stream)
        assert engine.stats().running == 1
    await until(lambda: not engine.stats().running)
    assert engine.stats().waiting == 0


async def test_choices_of_a_seeded_request_are_those_of_the_following_seeds(engine, ask, answer, scene):
    sampling = {"temperature": 1.5, "max_tokens": 12, "ignore_eos": True, "logprobs": True}
    several = await answer(engine, ask(scene(2), QUESTIONS[1], n=3, seed=40, **sampling))
    assert len({c.text for c in several.choices}) > 1
    for index, choice in enumerate(several.choices):
        single = await answer(engine, ask(scene(2), QUESTIONS[1], seed=40 + index, **sampling))
        assert choice.tokens == single.choices[0].tokens


async def test_eos_ends_with_stop_and_the_limit_with_length(engine, ask, answer, scene):
    short = await answer(engine, ask(scene(0), QUESTIONS[0]))
    assert short.choices[0].finish_reason == "stop"
    cut = await answer(engine, ask(scene(0), QUESTIONS[1], max_tokens=3))
    assert (cut.choices[0].finish_reason, cut.choices[0].count) == ("length", 3)


async def test_a_stop_string_ends_the_answer_before_it(engine, ask, answer, scene):
    full = (await answer(engine, ask(scene(0), QUESTIONS[1], max_tokens=25))).text
    word = full.split()[3]
    stopped = await answer(engine, ask(scene(0), QUESTIONS[1], max_tokens=25, stop=(word,)))
    assert stopped.text == full[: full.index(word)]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.chunks[-1].stop_string == word


async def test_logprobs_are_the_models_own(engine, plain, ask, answer, scene):
    request = ask(scene(0), QUESTIONS[0], max_tokens=1, temperature=0.5, seed=1, logprobs=True, top_logprobs=5)
    got = await answer(engine, request)
    [entry] = got.chunks[-1].logprobs
    content = [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]
    text = plain.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    with torch.inference_mode():
        logits = plain.model(**plain.processor(images=scene(0), text=text, return_tensors="pt")).logits[0, -1]
    best = logits.log_softmax(-1).topk(5)
    assert [top.token for top in entry.top] == [plain.processor.tokenizer.decode([i]) for i in best.indices]
    assert [top.logprob for top in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)


async def test_a_prompt_beyond_the_context_is_refused_with_counts(engine, ask, answer, scene):
    with pytest.raises(InvalidRequest, match=r"context is 1024 tokens.*\d{3}\. 'max_tokens' is 500") as refused:
        await answer(engine, ask(scene(0), QUESTIONS[0], max_tokens=500))
    assert (refused.value.param, refused.value.code) == ("max_tokens", "context_length_exceeded")
    with pytest.raises(InvalidRequest) as refused:
        await answer(engine, ask(scene(0), "star " * 600))
    assert (refused.value.param, refused.value.code) == ("messages", "context_length_exceeded")
    fits = await answer(engine, ask(scene(0), QUESTIONS[0], max_tokens=500, pruning={"keep_tokens": 64}))
    assert fits.choices[0].finish_reason == "stop"


async def test_an_unknown_method_is_refused_with_the_known_ones(engine, ask, answer, scene):
    with pytest.raises(InvalidRequest, match="mmtok"):
        await answer(engine, ask(scene(0), QUESTIONS[0], pruning={"method": "magic", "keep_tokens": 5}))


async def test_an_image_is_encoded_once_however_many_ask_about_it(engine, ask, answer, scene, monkeypatch):
    encoded = []
    encode = engine._adapter.encode
    monkeypatch.setattr(
        engine._adapter, "encode", lambda inputs, **kw: encoded.append(len(inputs)) or encode(inputs, **kw)
    )
    await asyncio.gather(*(answer(engine, ask(scene(0), question)) for question in QUESTIONS))
    await answer(engine, ask(scene(0), QUESTIONS[0]))
    assert sum(encoded) == 1
    assert engine.stats().cache_hits >= 1


async def test_an_image_the_tower_fails_on_takes_only_its_own_request(engine, ask, answer, scene, monkeypatch):
    encode = engine._adapter.encode
    poison = engine._adapter.preprocess(scene(9))["pixel_values"]

    def failing(inputs, **kwargs):
        if any(torch.equal(entry["pixel_values"], poison) for entry in inputs):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return encode(inputs, **kwargs)

    monkeypatch.setattr(engine._adapter, "encode", failing)
    good, bad = await asyncio.gather(
        answer(engine, ask(scene(8), QUESTIONS[0])),
        answer(engine, ask(scene(9), QUESTIONS[0])),
        return_exceptions=True,
    )
    assert good.choices[0].finish_reason == "stop"
    assert isinstance(bad, EngineError)
    assert "mat1" not in str(bad)


async def test_a_failed_step_loses_its_requests_and_not_the_engine(engine, ask, answer, scene, monkeypatch):
    with monkeypatch.context() as faulty:
        faulty.setattr(engine._worker._runner, "decode", lambda *args: 1 / 0)
        with pytest.raises(EngineError):
            await answer(engine, ask(scene(0), QUESTIONS[1]))
    assert (await answer(engine, ask(scene(0), QUESTIONS[0]))).choices[0].finish_reason == "stop"


async def test_a_failed_admission_tells_every_request_it_took(engine, ask, answer, scene, monkeypatch):
    with monkeypatch.context() as faulty:
        faulty.setattr(engine._cache, "peek", lambda key: 1 / 0)
        lost = await asyncio.gather(
            *(answer(engine, ask(scene(i), QUESTIONS[0])) for i in range(3)), return_exceptions=True
        )
    assert all(isinstance(error, EngineError) and "zero" not in str(error) for error in lost)
    assert (await answer(engine, ask(scene(0), QUESTIONS[0]))).choices[0].finish_reason == "stop"


async def test_a_full_queue_refuses_at_once(ask, answer, scene):
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), max_running=1, max_waiting=1, threads=1))
    await engine.start()
    try:
        running = engine.generate(ask(scene(0), QUESTIONS[1], max_tokens=400, ignore_eos=True))
        await anext(running)
        waiting = asyncio.create_task(answer(engine, ask(scene(0), QUESTIONS[0])))
        await until(lambda: engine.stats().waiting == 1)
        with pytest.raises(EngineOverloaded) as refused:
            await answer(engine, ask(scene(0), QUESTIONS[0]))
        assert refused.value.retry_after > 0
        await running.aclose()
        assert (await waiting).choices[0].finish_reason == "stop"
    finally:
        await engine.stop()


async def test_stopping_lets_running_requests_finish_and_refuses_new_ones(ask, answer, scene):
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), threads=1))
    await engine.start()
    task = asyncio.create_task(answer(engine, ask(scene(0), QUESTIONS[1], max_tokens=40, ignore_eos=True)))
    await until(lambda: engine.stats().running == 1)
    stopping = asyncio.create_task(engine.stop())
    assert (await task).choices[0].count == 40
    await stopping
    with pytest.raises(EngineUnavailable):
        await answer(engine, ask(scene(0), QUESTIONS[0]))


async def test_prune_reports_what_generate_would_keep(engine, ask, answer, scene):
    request = ask(scene(3), QUESTIONS[0], pruning={"keep_tokens": 40, "return_indices": True})
    report = await engine.prune(request)
    generated = await answer(engine, request)
    assert report.images[0].indices == generated.prompt.images[0].indices
    assert len(report.images[0].indices) == 40
    assert report.images[0].grid == (24, 24)
    assert report.prompt_tokens == generated.prompt.prompt_tokens


async def test_prune_waits_for_no_row_of_the_batch(ask, scene):
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), max_running=1, threads=1))
    await engine.start()
    try:
        report = await engine.prune(ask(scene(3), QUESTIONS[0], pruning={"keep_tokens": 4}, n=5))
    finally:
        await engine.stop()
    assert report.images[0].kept == 4


async def test_the_running_batch_never_exceeds_its_limit(ask, answer, scene):
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), max_running=4, threads=1))
    await engine.start()
    seen = []
    join = engine._worker._runner._batch.join

    def watched(*args):
        join(*args)
        seen.append(len(engine._worker._runner._batch))

    engine._worker._runner._batch.join = watched
    try:
        requests = mixed_requests(ask, scene, 12)
        done = await asyncio.gather(*(answer(engine, request) for request in requests))
    finally:
        await engine.stop()
    assert max(seen) <= 4
    assert all(choice.finish_reason for result in done for choice in result.choices)
