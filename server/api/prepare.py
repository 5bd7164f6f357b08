"""From the body of a request to the engine's terms: model name, pruning policy, messages with checked images."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from covervlm.server.access import cache_digest
from covervlm.server.adaptive_budget import AdaptiveBudget
from covervlm.server.agent import Agent, AgentReport, consult
from covervlm.server.api.chat_request import ChatCompletionRequest, ChatMessage, ImageContent, TextContent, VideoContent
from covervlm.server.api.models import budget_in_name
from covervlm.server.api.pruning_policy import pruning_policy
from covervlm.server.engines.base import (
    Engine,
    GenerationRequest,
    ImagePart,
    InvalidRequest,
    Message,
    PruningPolicy,
    TextPart,
    VideoPart,
)
from covervlm.server.media.images import ImageLoader
from covervlm.server.media.video import VideoLimits, VideoLoader
from covervlm.server.settings import Settings
from covervlm.server.store.records import ANONYMOUS


@dataclass(frozen=True)
class Prepared:
    """A request for the engine, and what came before it.

    media_seconds: how long its images took to be decoded, waiting included. agent: the first pass, where one was made.
    adaptive: the budget is the server's answer to its load.
    """

    request: GenerationRequest
    media_seconds: float
    agent: AgentReport | None = None
    adaptive: bool = False


class Preparation:
    """Checks what needs the served model to be known, and decodes the images."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        loader: ImageLoader,
        agent: Agent,
        adaptive_budget: AdaptiveBudget | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._loader = loader
        limits = VideoLimits(settings.max_video_frames, int(settings.max_video_bytes), settings.max_video_pixels)
        self._videos = VideoLoader(loader, limits)
        self._agent = agent
        self._adaptive_budget = adaptive_budget

    async def __call__(
        self, body: ChatCompletionRequest, request_id: str, owner: str, *, return_indices: bool = False
    ) -> Prepared:
        """Raises InvalidRequest naming the field, EngineOverloaded or RateLimited."""
        policy = self._policy(body, return_indices)
        start = time.perf_counter()
        images = await self._images(body, policy, owner)
        media_seconds = time.perf_counter() - start
        adaptive = self._adaptive_budget is not None and not policy.has_budget and policy.method != "none"
        if self._adaptive_budget is not None and adaptive:
            # Asked for once the images are there: what counts is the queue that the request is about to join.
            policy = replace(policy, keep_tokens=self._adaptive_budget.observe(self._engine.stats().waiting))
        messages = tuple(_message(message, images) for message in body.messages)
        tenant = None if owner == ANONYMOUS else owner
        request = GenerationRequest(request_id, messages, body.sampling(), policy, owner=tenant)
        report = None
        if policy.guide == "agent" and policy.prunes and request.images:
            report = await consult(self._agent, request, self._settings.agent_timeout)
            request = replace(request, hint=report.answer)
        return Prepared(request, media_seconds if request.images else 0.0, report, adaptive)

    def _policy(self, body: ChatCompletionRequest, return_indices: bool) -> PruningPolicy:
        settings = self._settings
        policy = pruning_policy(
            body.vision_pruning,
            alias_budget=budget_in_name(body.model, settings),
            default=PruningPolicy(
                method=settings.method, keep_tokens=settings.keep_tokens, keep_ratio=settings.keep_ratio
            ),
            return_indices=return_indices,
        )
        methods = self._engine.info.methods
        if policy.method not in methods:
            raise InvalidRequest(
                f"There is no pruning method '{policy.method[:40]}'; choose one of {', '.join(methods)}.",
                param="vision_pruning.method",
                code="invalid_value",
            )
        return policy

    async def _images(
        self, body: ChatCompletionRequest, policy: PruningPolicy, owner: str
    ) -> Iterator[ImagePart | VideoPart]:
        """Images and videos in reading order; a video counts as one image."""
        parts = [
            (part, f"messages[{i}].content[{j}]")
            for i, message in enumerate(body.messages)
            for j, part in enumerate(message.content)
            if isinstance(part, ImageContent | VideoContent)
        ]
        if len(parts) > self._settings.max_images:
            raise InvalidRequest(
                f"The request has {len(parts)} images; this server takes {self._settings.max_images} at most.",
                param="messages",
                code="too_many_images",
            )
        if isinstance(policy.keep_tokens, tuple) and len(policy.keep_tokens) != len(parts):
            raise InvalidRequest(
                f"keep_tokens has {len(policy.keep_tokens)} counts for {len(parts)} images; give one per image.",
                param="vision_pruning.keep_tokens",
                code="invalid_value",
            )
        loaded = await asyncio.gather(*(self._load(part, param) for part, param in parts))
        return iter([replace(part, digest=cache_digest(owner, part.digest)) for part in loaded])

    async def _load(self, part: ImageContent | VideoContent, param: str) -> ImagePart | VideoPart:
        if isinstance(part, ImageContent):
            return await self._loader.load(part.image_url.url, param=f"{param}.image_url.url")
        video = part.video_url
        return await self._videos.load(video.url, fps=video.fps, param=f"{param}.video_url.url")


def _message(message: ChatMessage, images: Iterator[ImagePart | VideoPart]) -> Message:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Message(role, (TextPart(message.content),))
    return Message(
        role,
        tuple(
            next(images)
            if isinstance(part, ImageContent | VideoContent)
            else TextPart(part.text if isinstance(part, TextContent) else part.refusal)
            for part in message.content
        ),
    )
