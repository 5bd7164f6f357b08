"""An engine that yields, raises and waits for what the test says, and bodies to send to the application over it."""

import asyncio
import base64
import contextlib
import io
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image

from covervlm.server.core.agreement import AnswerScores
from covervlm.server.core.caller import Caller
from covervlm.server.core.engine import EngineInfo, EngineStats
from covervlm.server.core.generation import (
    GenerationChunk,
    GenerationRequest,
    ImageReport,
    PromptReport,
    PromptTokens,
    TokenLogprob,
)

IMAGE_TOKENS = 576


@dataclass
class Gate:
    """A place in a script where the engine waits until the test opens it."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)


Step = GenerationChunk | Exception | Gate
Script = Callable[[GenerationRequest], Sequence[Step]]


def prompt_report(request: GenerationRequest) -> PromptReport:
    """Ten text tokens, 576 vision tokens per image unpruned, and a budget kept to the letter."""
    policy = request.pruning
    images = []
    for number, _ in enumerate(request.images):
        kept = IMAGE_TOKENS
        if policy.prunes and policy.keep_ratio is not None:
            kept = int(IMAGE_TOKENS * policy.keep_ratio)
        elif policy.prunes and policy.keep_tokens is not None:
            counts = policy.keep_tokens
            kept = min(IMAGE_TOKENS, counts[number] if isinstance(counts, tuple) else counts)
        indices = tuple(range(kept)) if policy.return_indices else None
        grid = (24, 24) if policy.return_indices else None
        box = (0.0, 0.0, 96.0, 96.0) if policy.return_indices else None
        images.append(ImageReport(IMAGE_TOKENS, kept, policy.method, 0.5, 1.25, indices, grid, box))
    ids = tuple(range(10 + sum(image.kept for image in images)))
    logprobs: tuple[TokenLogprob, ...] = ()
    if (count := request.sampling.prompt_logprobs) is not None:
        top = tuple(TokenLogprob(f"x{i}", b"x", -0.5, id=90 + i, rank=i + 1) for i in range(count))
        logprobs = tuple(TokenLogprob(f"t{i} ", f"t{i} ".encode(), -1.5 if i else math.nan, top, i, 7) for i in ids)
    seconds = {"queue": 0.001, "preprocess": 0.002, "tower": 0.003, "selection": 0.004, "prefill": 0.005}
    return PromptReport(len(ids), tuple(images), seconds, token_ids=ids, logprobs=logprobs)


def logprob(token: str, value: float, *top: TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token, tuple(token.encode()), value, top)


def red_circle(request: GenerationRequest) -> list[Step]:
    """ "a red circle" in three tokens, for every choice, with log probabilities where they are asked for."""
    words = ["a", " red", " circle"]
    steps: list[Step] = []
    for position, word in enumerate(words):
        for index in range(request.sampling.n):
            logprobs = ()
            if request.sampling.logprobs:
                top = (logprob(word, -0.25), logprob("x", float("-inf")))
                logprobs = (logprob(word, -0.25, *top[: request.sampling.top_logprobs]),)
            prompt = prompt_report(request) if not steps else None
            last = position == len(words) - 1
            reason = "stop" if last else None
            steps.append(GenerationChunk(index, word, 1, logprobs, reason, prompt, (100 + position,)))
    return steps


class ScriptedEngine:
    """An Engine that follows `script`, and remembers what it was asked and which requests it let go of."""

    def __init__(self, script: Script = red_circle) -> None:
        self.script = script
        self.requests: list[GenerationRequest] = []
        self.scored: list[GenerationRequest] = []
        self.present: list[str] = []
        self.released: list[str] = []
        self.on_release: Callable[[str], None] = lambda request_id: None
        self.started = False
        self.recommended: dict[str, float] = {}
        self.tool_format: str | None = None

    async def start(self) -> None:
        self.started = True

    async def stop(self) -> None:
        self.started = False
        self.recommended: dict[str, float] = {}

    @property
    def info(self) -> EngineInfo:
        methods = ("mmtok", "vision_coverage", "text_coverage", "random", "uniform", "none")
        facts = ("scripted", "Scripted", 4096, IMAGE_TOKENS, "float32", "cpu", methods, self.recommended)
        return EngineInfo(*facts, self.tool_format)

    @property
    def ready(self) -> bool:
        return self.started

    def stats(self) -> EngineStats:
        return EngineStats(running=3, waiting=2, cache_bytes=1000, cache_hits=7, cache_misses=5)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        self.requests.append(request)
        try:
            for step in self.script(request):
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Gate):
                    step.reached.set()
                    await step.opened.wait()
                else:
                    yield step
        finally:
            self.released.append(request.request_id)
            self.on_release(request.request_id)

    async def prune(self, request: GenerationRequest) -> PromptReport:
        self.requests.append(request)
        try:
            for step in self.script(request):
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Gate):
                    step.reached.set()
                    await step.opened.wait()
        finally:
            self.released.append(request.request_id)
            self.on_release(request.request_id)
        return prompt_report(request)

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        self.present.append("came")
        yield
        self.present.append("went")

    async def score(self, request: GenerationRequest, answer: Sequence[int]) -> AnswerScores:
        """The unpruned model would have chosen another second token; both find all of them alike."""
        self.scored.append(request)
        likeliest = list(answer)
        best = [-0.5] * len(answer)
        if not request.pruning.prunes:
            likeliest[1], best[1] = -1, -0.25
        return AnswerScores([-0.5] * len(answer), likeliest, best)

    async def tokenize(self, request: GenerationRequest) -> PromptTokens:
        self.requests.append(request)
        ids = tuple(range(prompt_report(request).prompt_tokens))
        return PromptTokens(ids, tuple(f"t{i}" for i in ids))

    async def detokenize(self, ids: Sequence[int], caller: Caller) -> str:
        return " ".join(f"t{i}" for i in ids)


def data_url(image: Image.Image, kind: str = "PNG", **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def chat_body(text: str | None = "What color is it?", *urls: str, **fields: object) -> dict[str, object]:
    """A chat completion with the images first and the question last."""
    content: list[dict[str, object]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    if text is not None:
        content.append({"type": "text", "text": text})
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **fields}
