"""The report on a prompt: what became of its images, and how many tokens there were."""

import time
import uuid
from collections.abc import Sequence

from covervlm.server.api.wire.chat_response import (
    PrunedImage,
    PruneResponse,
    PruningReport,
)
from covervlm.server.core.generation import ImageReport, PromptReport, PruningPolicy
from covervlm.server.telemetry.request_record import RequestRecord

FEW = 64
"""A coverage budget that keeps less than one token in so many is worth a warning."""


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
