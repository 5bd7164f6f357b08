"""What an answer says beside its text: what became of the prompt's images, token counts, the system's fingerprint."""

import hashlib
import time
import uuid
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from covervlm.server.api.wire.chat_response import (
    PromptTokensDetails,
    PrunedImage,
    PruneResponse,
    PruningReport,
    Usage,
)
from covervlm.server.core.engine import Engine
from covervlm.server.core.generation import ImageReport, PromptReport, PruningPolicy
from covervlm.server.telemetry.request_record import RequestRecord

FEW = 64
"""A coverage budget that keeps less than one token in so many is worth a warning."""


class Fingerprint:
    """OpenAI's `system_fingerprint`: it changes whenever the same request might be answered differently.

    The same for the same release, model, engine and configuration, on every replica and after every restart.
    """

    def __init__(self, engine: Engine, *configured: object) -> None:
        self._engine = engine
        self._configured = configured
        self._known: str | None = None

    def __call__(self) -> str:
        """Raises EngineUnavailable before the model is loaded."""
        if self._known is None:
            of = (version("covervlm"), self._engine.info, self._configured)
            self._known = f"fp_{hashlib.sha256(repr(of).encode()).hexdigest()[:12]}"
        return self._known


def usage(prompts: Iterable[PromptReport], completion_tokens: int) -> Usage:
    """OpenAI's count of the tokens of all prompts of one request together, and of its answers."""
    prompt_tokens = image_tokens = cached_tokens = 0
    for prompt in prompts:
        prompt_tokens += prompt.prompt_tokens
        cached_tokens += prompt.cached_tokens
        image_tokens += sum(image.kept for image in prompt.images)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=cached_tokens, image_tokens=image_tokens, text_tokens=prompt_tokens - image_tokens
        ),
    )


def prune_response(prompt: PromptReport, record: RequestRecord) -> PruneResponse:
    """What would be kept of each image."""
    report = pruning_report(prompt, record)
    return PruneResponse(
        id=f"prune-{uuid.uuid4().hex}",
        object="vision_pruning",
        created=int(time.time()),
        model=record.model,
        prompt_tokens=prompt.prompt_tokens,
        **{name: getattr(report, name) for name in report.model_fields_set},
    )


def pruning_report(prompt: PromptReport, record: RequestRecord) -> PruningReport:
    """One entry for each image, and what came before the first token."""
    agent = record.agent
    seconds = {"media": record.media_seconds, **({"agent": agent.seconds} if agent else {}), **prompt.seconds}
    report = PruningReport(
        images=[_pruned_image(image) for image in prompt.images],
        seconds={stage: round(value, 6) for stage, value in seconds.items()},
    )
    if agent is not None:
        report.agent = agent
    if record.adaptive:
        report.adaptive = True
    if record.policy is not None and (warnings := pruning_warnings(record.policy, prompt.images)):
        report.warnings = warnings
    return report


def pruning_warnings(policy: PruningPolicy, images: Sequence[ImageReport]) -> list[str]:
    """Remarks on settings that probably do not do what the caller meant."""
    warnings = []
    if policy.named and policy.method != "none" and not policy.has_budget and images:
        warnings.append(f"'{policy.method}' pruned nothing, because there is no budget; set one, e.g. keep_tokens.")
    few = [image for image in images if policy.coverage is not None and image.kept * FEW < image.total]
    if few:
        least = min(few, key=lambda image: image.kept)
        warnings.append(
            f"A coverage of {policy.coverage:g} kept {least.kept} of {least.total} tokens; set min_tokens to keep more."
        )
    return warnings


def _pruned_image(report: ImageReport) -> PrunedImage:
    image = PrunedImage(
        total=report.total,
        kept=report.kept,
        method=report.method,
        coverage=report.coverage,
        milliseconds=round(report.milliseconds, 3),
    )
    if report.indices is not None:
        image.indices, image.grid, image.box = list(report.indices), report.grid, report.box
    return image
