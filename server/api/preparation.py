"""From the body of a request to the engine's terms: model name, pruning policy, messages with checked images."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from covervlm.server.api.errors import MODEL_NOT_FOUND
from covervlm.server.api.tool_use import held_to_tools, tool_use
from covervlm.server.api.wire.chat_request import ChatMessage, ChatPrompt, ImageContent, TextContent, VideoContent
from covervlm.server.asking.agent import Agent
from covervlm.server.core.caller import Caller
from covervlm.server.core.engine import Engine
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    PruningPolicy,
    SamplingParams,
    TextPrompt,
    ToolCall,
    ToolUse,
    VideoPart,
)
from covervlm.server.core.pruning_policy import pruning_policy
from covervlm.server.core.tasks import all_or_none
from covervlm.server.limits.adaptive_budget import AdaptiveBudget
from covervlm.server.media.images import ImageLoader
from covervlm.server.media.video import VideoLoader
from covervlm.server.telemetry.request_record import RequestRecord

PLAIN = SamplingParams()
MANY_PARTS = 1000
"""From this many parts on, a request's messages are made in a thread."""


@dataclass(frozen=True)
class ChatDefaults:
    """The served model's name, the policy where a request has none, and the most images and videos.

    tool_format: how calls of functions are written, None for as the chat template does.
    """

    model: str
    policy: PruningPolicy
    max_images: int
    tool_format: str | None = None


def budget_in_name(name: str, served: str) -> int | None:
    """The budget that a model's name carries: 64 for `demo:64`, None for `demo` or no name, where `demo` is served.

    Any budget may be named, not only those that are listed. Raises InvalidRequest for a model that is not served.
    """
    if name in ("", served):
        return None
    budget = name.removeprefix(f"{served}:")
    if budget != name and budget.isascii() and budget.isdigit() and len(budget) < 10 and int(budget) > 0:
        return int(budget)
    message = f"The model '{name[:200]}' does not exist or does not chat; this server chats with '{served}'."
    raise InvalidRequest(message, param="model", code=MODEL_NOT_FOUND)


class Preparation:
    """Checks what needs the served model to be known, and decodes the images."""

    def __init__(
        self,
        engine: Engine,
        defaults: ChatDefaults,
        images: ImageLoader,
        videos: VideoLoader,
        agent: Agent,
        adaptive_budget: AdaptiveBudget | None = None,
    ) -> None:
        self._engine = engine
        self._defaults = defaults
        self._images = images
        self._videos = videos
        self._agent = agent
        self._adaptive_budget = adaptive_budget

    async def __call__(
        self, body: ChatPrompt, record: RequestRecord, caller: Caller, *, return_indices: bool = False
    ) -> GenerationRequest:
        """The engine's request; what it took goes into the record.

        Raises InvalidRequest naming the field, EngineOverloaded or RateLimited.
        """
        info = self._engine.info
        form = self._defaults.tool_format or info.tool_format
        sampling, tools = body.sampling(info.sampling), ToolUse(format=form or "json")
        if body.tools and body.tool_choice != "none":
            tools = tool_use(body, body.tools, form)
            sampling = held_to_tools(sampling, body, tools)
        policy = self._policy(body, return_indices)
        start = time.perf_counter()
        media = await self._media(body, policy, caller)
        if media:
            record.media_seconds = time.perf_counter() - start
        if self._adaptive_budget is not None and not policy.has_budget and policy.method != "none":
            # Asked for once the images are there: what counts is the queue that the request is about to join.
            policy = replace(policy, keep_tokens=self._adaptive_budget.observe(self._engine.stats().waiting))
            record.adaptive = True
        if sum(len(message.parts) for message in body.messages) < MANY_PARTS:
            messages = _messages(body, media)
        else:
            messages = await asyncio.to_thread(_messages, body, media)
        request = GenerationRequest(
            record.request_id, messages, sampling, policy, body.template, caller=caller, tools=tools
        )
        if policy.guide == "agent" and policy.prunes and media:
            record.agent = await self._agent(request)
            request = replace(request, hint=record.agent.answer)
        record.model, record.policy = body.model or self._defaults.model, policy
        return request

    def texts(
        self,
        model: str,
        prompts: Sequence[TextPrompt],
        record: RequestRecord,
        caller: Caller,
        sampling: SamplingParams = PLAIN,
    ) -> list[GenerationRequest]:
        """The engine's requests for prompts without images, one for each. Raises InvalidRequest."""
        budget_in_name(model, self._defaults.model)
        record.model = model or self._defaults.model
        return [
            GenerationRequest(f"{record.request_id}-{i}" if i else record.request_id, prompt, sampling, caller=caller)
            for i, prompt in enumerate(prompts)
        ]

    def _policy(self, body: ChatPrompt, return_indices: bool) -> PruningPolicy:
        budget = budget_in_name(body.model, self._defaults.model)
        policy = pruning_policy(
            body.pruning, alias_budget=budget, default=self._defaults.policy, return_indices=return_indices
        )
        methods = self._engine.info.methods
        if policy.method not in methods:
            name, known = policy.method[:40], ", ".join(methods)
            raise InvalidRequest(
                f"There is no pruning method '{name}' for this model; choose one of {known}.",
                param="vision_pruning.method",
                code="invalid_value",
            )
        return policy

    async def _media(self, body: ChatPrompt, policy: PruningPolicy, caller: Caller) -> list[ImagePart | VideoPart]:
        """Images and videos in reading order; a video counts as one image."""
        parts = [
            (part, f"messages[{i}].content[{j}]")
            for i, message in enumerate(body.messages)
            for j, part in enumerate(message.parts)
            if isinstance(part, ImageContent | VideoContent)
        ]
        if len(parts) > self._defaults.max_images:
            raise InvalidRequest(
                f"The request has {len(parts)} images and videos; this server takes "
                f"{self._defaults.max_images} at most.",
                param="messages",
                code="too_many_images",
            )
        if isinstance(policy.keep_tokens, tuple) and len(policy.keep_tokens) != len(parts):
            raise InvalidRequest(
                f"keep_tokens has {len(policy.keep_tokens)} counts for {len(parts)} images and videos; "
                "give one for each.",
                param="vision_pruning.keep_tokens",
                code="invalid_value",
            )
        loaded = await all_or_none(self._load(part, param, caller) for part, param in parts)
        return [replace(part, digest=caller.cache_digest(part.digest)) for part in loaded]

    async def _load(self, part: ImageContent | VideoContent, param: str, caller: Caller) -> ImagePart | VideoPart:
        if isinstance(part, ImageContent):
            return await self._images.load(part.image_url.url, param=f"{param}.image_url.url", caller=caller)
        video = part.video_url
        return await self._videos.load(video.url, fps=video.fps, param=f"{param}.video_url.url", caller=caller)


def _messages(body: ChatPrompt, media: list[ImagePart | VideoPart]) -> tuple[Message, ...]:
    following = iter(media)
    return tuple(_message(message, following) for message in body.messages)


def _message(message: ChatMessage, media: Iterator[ImagePart | VideoPart]) -> Message:
    role = "system" if message.role == "developer" else message.role
    content = tuple(
        next(media)
        if isinstance(part, ImageContent | VideoContent)
        else (part.text if isinstance(part, TextContent) else part.refusal)
        for part in message.parts
    )
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls)
    return Message(role, content or (message.text,), calls, message.tool_call_id)
