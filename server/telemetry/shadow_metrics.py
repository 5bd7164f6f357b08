"""How pruned answers compare with the unpruned model: figures of shadows, nothing of what was asked or answered."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PLACES = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Of first divergences: how many tokens come before."""
OUTCOMES = ("compared", "full", "memory", "expired", "too_long", "failed", "stopped")


class Compared(Protocol):
    """What is counted of one comparison."""

    @property
    def tokens(self) -> int: ...

    @property
    def agreeing(self) -> int: ...

    @property
    def first_divergence(self) -> int | None: ...

    @property
    def exact(self) -> bool: ...

    @property
    def served_nats(self) -> float: ...

    @property
    def reference_nats(self) -> float: ...


class ShadowMetrics:
    """Counters of the answers that were drawn for comparison."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        by_budget = partial(Counter, labelnames=["method", "budget"], registry=registry)
        self._outcomes = Counter(
            "covervlm_shadow_requests",
            "Answers drawn for comparison, by what came of it.",
            ["outcome"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._outcomes.labels(outcome)
        self._answers = by_budget("covervlm_shadow_answers", "Answers that were compared.")
        self._exact = by_budget(
            "covervlm_shadow_exact_answers", "Of these, those that the unpruned model would repeat."
        )
        self._tokens = by_budget("covervlm_shadow_tokens", "Tokens of compared answers.")
        self._agreeing = by_budget(
            "covervlm_shadow_agreeing_tokens", "Of these, those that the unpruned model agrees on."
        )
        self._nats = Counter(
            "covervlm_shadow_nats",
            "Negative log likelihood of compared answers under the pruned and the unpruned model.",
            ["model", "method", "budget"],
            registry=registry,
        )
        self._first = Histogram(
            "covervlm_shadow_first_divergence_tokens",
            "Tokens before the first on which the unpruned model does not agree, of answers that have one.",
            ["method", "budget"],
            registry=registry,
            buckets=PLACES,
        )

    def watch(self, waiting: Callable[[], int], held: Callable[[], int]) -> None:
        """Show how many wait, and their bytes, whenever the metrics are read."""
        gauge = partial(Gauge, registry=self._registry)
        gauge("covervlm_shadow_waiting", "Answers that wait for comparison.").set_function(waiting)
        gauge("covervlm_shadow_bytes", "Memory that is held for comparisons.").set_function(held)

    def compared(self, method: str, budget: str, seen: Compared) -> None:
        self._outcomes.labels("compared").inc()
        self._answers.labels(method, budget).inc()
        self._exact.labels(method, budget).inc(seen.exact)
        self._tokens.labels(method, budget).inc(seen.tokens)
        self._agreeing.labels(method, budget).inc(seen.agreeing)
        self._nats.labels("pruned", method, budget).inc(seen.served_nats)
        self._nats.labels("unpruned", method, budget).inc(seen.reference_nats)
        first = self._first.labels(method, budget)
        if seen.first_divergence is not None:
            first.observe(seen.first_divergence)

    def dropped(self, why: str, count: int) -> None:
        self._outcomes.labels(why).inc(count)
