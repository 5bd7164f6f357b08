"""The load benchmark's figures: measurements to percentiles and ratios, and those to a table, a CSV file and a plot."""

import csv
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speed.load_generator import Load, Reply

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Measurement:
    """One load on one variant in one round."""

    variant: str
    load: Load
    round: int
    replies: Sequence[Reply]

    @property
    def whole(self) -> list[Reply]:
        return [reply for reply in self.replies if reply.error is None]

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        ended = max((reply.ended for reply in self.whole), default=0.0)
        return max(ended - min((reply.started for reply in self.whole), default=0.0), 1e-9)

    @property
    def requests_per_second(self) -> float:
        return len(self.whole) / self.seconds

    @property
    def first_token(self) -> float:
        """The median, in seconds; not a number where nothing was answered."""
        return percentile([r.first_token for r in self.whole if r.first_token is not None], 50)


@dataclass(frozen=True)
class Row:
    """All rounds of one load on one variant. Milliseconds; percentiles are over all requests of all rounds.

    The ratios are medians over the rounds, each to the baseline's measurement in the same round, with their range:
    how many times sooner the median first token comes, and how many times as many requests are answered.
    """

    load: str
    variant: str
    prompt_tokens: float
    first_token: tuple[float, ...]
    inter_token: tuple[float, ...]
    end_to_end: tuple[float, ...]
    requests_per_second: float
    tokens_per_second: float
    requests: int
    asked: int
    errors: int
    right: float
    sooner: tuple[float, float, float] | None
    more: tuple[float, float, float] | None


def percentile(values: Sequence[float], rank: int) -> float:
    return float(np.percentile(values, rank)) if values else float("nan")


def rows(measurements: Sequence[Measurement], baseline: str) -> list[Row]:
    """A row per load and variant, in the order of their first measurements. baseline: the variant to compare with."""
    return [_row(*key, measurements, baseline) for key in dict.fromkeys((m.load, m.variant) for m in measurements)]


def _row(load: Load, variant: str, measurements: Sequence[Measurement], baseline: str) -> Row:
    mine = [m for m in measurements if (m.load, m.variant) == (load, variant)]
    base = {m.round: m for m in measurements if (m.load, m.variant) == (load, baseline)}
    whole = [reply for m in mine for reply in m.whole]
    seconds = sum(m.seconds for m in mine)

    def milliseconds(value: Callable[[Reply], float | None]) -> tuple[float, ...]:
        values = [v * 1e3 for reply in whole if (v := value(reply)) is not None]
        return tuple(percentile(values, rank) for rank in PERCENTILES)

    def ratios(ratio: Callable[[Measurement, Measurement], float]) -> tuple[float, float, float] | None:
        values = [ratio(m, base[m.round]) for m in mine if m.round in base and m.whole and base[m.round].whole]
        return (statistics.median(values), min(values), max(values)) if values and variant != baseline else None

    return Row(
        load=load.name,
        variant=variant,
        prompt_tokens=percentile([reply.prompt_tokens for reply in whole], 50),
        first_token=milliseconds(lambda reply: reply.first_token),
        inter_token=milliseconds(lambda reply: reply.inter_token if reply.output_tokens > 1 else None),
        end_to_end=milliseconds(lambda reply: reply.ended - reply.started),
        requests_per_second=len(whole) / seconds if seconds else 0.0,
        tokens_per_second=sum(reply.output_tokens for reply in whole) / seconds if seconds else 0.0,
        requests=len(whole),
        asked=load.requests * len(mine),
        errors=sum(reply.error is not None for m in mine for reply in m.replies),
        right=sum(reply.right for reply in whole) / max(len(whole), 1),
        sooner=ratios(lambda m, other: other.first_token / m.first_token),
        more=ratios(lambda m, other: m.requests_per_second / other.requests_per_second),
    )


def table(found: Iterable[Row], *, accuracy: bool) -> str:
    """Markdown. accuracy: whether answers end by themselves, so that they can be right."""
    titles = ["load", "variant", "prompt tokens", "first token ms p50 / p95 / p99"]
    titles += [] if accuracy else ["between tokens ms"]
    titles += ["end to end ms", "requests/s", "tokens/s", "requests", "errors", "first token sooner", "requests/s more"]
    titles += ["right answers"] if accuracy else []
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in found:
        cells = [row.load, row.variant, f"{row.prompt_tokens:.0f}"]
        times = [row.first_token, row.end_to_end] if accuracy else [row.first_token, row.inter_token, row.end_to_end]
        cells += [" / ".join(_ms(value) for value in values) for values in times]
        cells += [f"{row.requests_per_second:.2f}", f"{row.tokens_per_second:.1f}"]
        # A measurement that its time limit cut short has lost its slowest requests: the table must not hide that.
        cells += [str(row.requests) if row.requests >= row.asked else f"{row.requests} of {row.asked}", str(row.errors)]
        cells += [_ratio(row.sooner), _ratio(row.more)]
        cells += [f"{row.right:.1%}"] if accuracy else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _ratio(ratio: tuple[float, float, float] | None) -> str:
    return f"{ratio[0]:.2f}x ({ratio[1]:.2f}-{ratio[2]:.2f})" if ratio else ""


def write_csv(measurements: Iterable[Measurement], path: Path) -> None:
    """One line per request."""
    fields = list(Reply.__dataclass_fields__)
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["load", "variant", "round", *fields])
        for m in measurements:
            for reply in m.replies:
                lines.writerow([m.load.name, m.variant, m.round, *(getattr(reply, name) for name in fields)])


def plot(found: Sequence[Row], path: Path, title: str) -> None:
    """Median and p95 time to the first token, and requests a second, by load."""
    from matplotlib.figure import Figure

    loads, variants = list(dict.fromkeys(row.load for row in found)), list(dict.fromkeys(row.variant for row in found))
    by_key = {(row.load, row.variant): row for row in found}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    width = 0.8 / len(variants)
    for place, variant in enumerate(variants):
        at = [i + (place - (len(variants) - 1) / 2) * width for i in range(len(loads))]
        mine = [by_key.get((load, variant)) for load in loads]
        first = [row.first_token[0] / 1e3 if row else 0 for row in mine]
        tail = [(row.first_token[1] - row.first_token[0]) / 1e3 if row else 0 for row in mine]
        left.bar(at, first, width, label=variant, yerr=[[0] * len(tail), tail], error_kw={"lw": 0.8, "capsize": 2})
        right.bar(at, [row.requests_per_second if row else 0 for row in mine], width, label=variant)
    for axes, label in [(left, "time to first token, s: median, whisker to p95"), (right, "requests a second")]:
        axes.set_xticks(range(len(loads)), loads)
        axes.set_title(label, fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    right.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
