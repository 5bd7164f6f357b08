"""OpenTelemetry traces of requests, where the environment names a collector; nothing is imported where it does not.

The spans are made from a request's record when it ends: the engine measures its stages anyway, and knows no traces.
OTEL_EXPORTER_OTLP_ENDPOINT turns them on; OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and the
SDK's other variables work as they do everywhere.
"""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from covervlm.server.telemetry.request_record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def build_tracing(environment: Mapping[str, str] = os.environ) -> "Tracing | None":
    """Tracing to the collector that the environment names; None without one, or without OpenTelemetry's packages."""
    off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    if off or not any(environment.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("traces are not sent: OpenTelemetry is not installed; pip install 'covervlm[otel]'")
        return None
    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "covervlm"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """Makes a request's record into a span with one child for each stage, below the caller's own span if it has one."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("covervlm")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, record: RequestRecord, headers: Mapping[str, str]) -> str:
        """Export a request that has ended, and return its trace's id; `headers` may hold the caller's `traceparent`."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        span = self._tracer.start_span(
            f"{record.method} {record.route}",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(record.unix_time),
            attributes=_attributes(record),
        )
        if record.status >= 500 or (record.error and record.status < 400):
            span.set_status(Status(StatusCode.ERROR))
        context = set_span_in_context(span)
        for stage, (start, seconds) in record.stages.items():
            start += record.unix_time
            child = self._tracer.start_span(stage, context=context, start_time=_nanoseconds(start))
            if stage == "selection" and record.prompt is not None:
                child.set_attribute("covervlm.pruning.method", record.prompt.method)
                child.set_attribute("covervlm.vision_tokens.before", record.vision_tokens_before)
                child.set_attribute("covervlm.vision_tokens.after", record.vision_tokens_after)
            child.end(_nanoseconds(start + seconds))
        span.end(_nanoseconds(record.unix_time + record.seconds))
        return f"{span.get_span_context().trace_id:032x}"

    def stop(self) -> None:
        """Send what is left; blocks until it is sent or the exporter's time is over."""
        self._provider.shutdown()


def _attributes(record: RequestRecord) -> dict[str, Any]:
    """OpenTelemetry's names for HTTP and generative models where it has some."""
    attributes: dict[str, Any] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "covervlm.request_id": record.request_id,
        "covervlm.owner": record.owner[:8] or None,
        "error.type": record.error,
        "gen_ai.request.model": record.model or None,
        "gen_ai.usage.output_tokens": record.generation_tokens,
        "gen_ai.response.finish_reasons": record.finish_reason and (record.finish_reason,),
        "gen_ai.server.time_to_first_token": record.first_token_seconds,
    }
    if record.prompt is not None:
        attributes |= {
            "gen_ai.operation.name": "chat" if record.generation_tokens is not None else None,
            "gen_ai.usage.input_tokens": record.prompt.prompt_tokens,
            "covervlm.pruning.method": record.prompt.method,
            "covervlm.vision_tokens.before": record.vision_tokens_before,
            "covervlm.vision_tokens.after": record.vision_tokens_after,
        }
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
