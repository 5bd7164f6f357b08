"""Requests to an engine in this process, alone or together, and their answers with the time to the first token."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from demo_model.scenes import make_scene
from demo_model.splits import FIRST_SEED
from PIL.Image import Image

from covervlm.server.core.engine import Engine
from covervlm.server.core.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    PromptReport,
    PruningPolicy,
    SamplingParams,
)

QUESTIONS = ("Describe the image.", "How many objects are there?", "What color is the circle?", "Where is the square?")


@dataclass(frozen=True)
class Answer:
    """first: seconds from the request to its first token."""

    tokens: tuple[int, ...]
    prompt: PromptReport
    first: float


def scenes(count: int) -> list[Image]:
    """Pictures that are in no training set."""
    return [make_scene(FIRST_SEED["tuning"] + number).image for number in range(count)]


def request(number: int, image: Image, *, keep: int | None, answer: int, ignore_eos: bool = False) -> GenerationRequest:
    """A greedy answer of at most, or with ignore_eos of exactly, so many tokens about an image that is new."""
    question = QUESTIONS[number % len(QUESTIONS)]
    content = (ImagePart(image, f"benchmark-{time.perf_counter_ns()}-{number}"), question)
    sampling = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=ignore_eos)
    pruning = PruningPolicy(keep_tokens=keep, return_indices=True)
    return GenerationRequest(f"gpu-{number}", (Message("user", content),), sampling, pruning)


async def ask(engine: Engine, asked: GenerationRequest) -> Answer:
    sent, first, tokens, prompt = time.perf_counter(), 0.0, [], None
    async for chunk in engine.generate(asked):
        prompt = chunk.prompt or prompt
        if chunk.token_ids:
            first = first or time.perf_counter() - sent
            tokens += chunk.token_ids
    assert prompt is not None
    return Answer(tuple(tokens), prompt, first)


async def ask_together(engine: Engine, asked: Sequence[GenerationRequest]) -> list[Answer]:
    """Raises what the first that fails raises, once all have ended."""
    ended = await asyncio.gather(*(ask(engine, one) for one in asked), return_exceptions=True)
    if failed := [one for one in ended if isinstance(one, BaseException)]:
        raise failed[0]
    return [one for one in ended if isinstance(one, Answer)]
