"""Peaks foreseen: errors beside ARIMA and the seasonal naive, and what a budget that anticipates is worth.

    python benchmarks/forecast.py                  both tables, some minutes on a busy machine
    python benchmarks/forecast.py --seeds 5        more weeks of made-up traffic

Traffic is made up in the shapes of public traces (foreseen/traffic.py), from a seed, bursts included; nothing is fitted
to it. First table: each day of a week is foreseen at its midnight from the five weeks before. Errors are in percent of
the week's mean; peaks are the 5 % highest hours. ARIMA needs statsmodels, from the extra `bench`.

Second table: a week after four, replayed request by request through a model of a server's queue with the real budget
and forecaster (foreseen/replay.py), its highest usual hours at 1.3 times what 192 tokens bear. Nothing is served, and
a week passes in seconds: it tells what the rule does, not how fast any machine is.
"""

import argparse
import os
from collections.abc import Sequence

import numpy as np
from foreseen import predictors, replay, traffic
from foreseen.traffic import WEEK, Series
from tqdm import tqdm

DAY = 24
LOAD = 1.3
"""Of the highest usual hours, in units of what the ceiling bears."""


def foreseen_days(y: Series) -> dict[str, Series]:
    """(168,) by predictor: the last week of y, each day from all before it."""
    origins = range(len(y) - WEEK, len(y), DAY)
    both = [predictors.decomposition(y[:origin]) for origin in origins]
    days = {
        "decomposition": [expected for expected, _ in both],
        "its upper band": [upper for _, upper in both],
        "seasonal naive": [predictors.seasonal_naive(y[:origin]) for origin in origins],
    }
    if (arima := predictors.arima(y[:-WEEK])) is not None:
        days["ARIMA(2,1,2)"] = [arima(y[:origin]) for origin in origins]
    return {name: np.concatenate(parts) for name, parts in days.items()}


def errors(truth: Series, foreseen: Series) -> list[float]:
    """In percent: RMSE, RMSE of peaks, mean error of the days' highest hours, peaks and hours under-predicted."""
    high = truth >= np.quantile(truth, 0.95)
    tops, foreseen_tops = truth.reshape(-1, DAY).max(1), foreseen.reshape(-1, DAY).max(1)
    return [
        100 * float(np.sqrt(np.mean((foreseen - truth) ** 2))) / truth.mean(),
        100 * float(np.sqrt(np.mean((foreseen - truth)[high] ** 2))) / truth.mean(),
        100 * float(np.mean(np.abs(foreseen_tops - tops) / tops)),
        100 * float(np.mean(foreseen[high] < truth[high])),
        100 * float(np.mean(foreseen < truth)),
    ]


def error_table(seeds: int) -> str:
    lines = [
        "| traffic | forecast | RMSE | RMSE of peaks | daily peak | peaks under-predicted | hours under-predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in traffic.SHAPES:
        rows: dict[str, list[list[float]]] = {}
        for seed in tqdm(range(seeds), desc=f"{shape}, errors", unit="week"):
            y = traffic.counts(traffic.rates(shape, 6 * WEEK, 3000, seed), seed)
            for name, foreseen in foreseen_days(y).items():
                rows.setdefault(name, []).append(errors(y[-WEEK:], foreseen))
        for name, found in rows.items():
            lines.append(f"| {shape} | {name} | {' | '.join(f'{mean:.0f} %' for mean in np.mean(found, axis=0))} |")
    return "\n".join(lines)


def budget_table(seeds: int) -> str:
    lines = [
        "| traffic | budget | first token s p50 / p95 / p99 | p95 in peak hours | tokens kept, mean | in peak hours |",
        "|---|---|---|---|---|---|",
    ]
    bears = 3600 * replay.PER_SECOND[replay.CEILING]
    for shape in traffic.SHAPES:
        rows: dict[str, list[list[float]]] = {}
        for seed in tqdm(range(seeds), desc=f"{shape}, replay", unit="week"):
            level = traffic.rates(shape, 5 * WEEK, LOAD * bears, seed)
            moments = traffic.arrivals(level, seed)
            start = 4 * WEEK * 3600.0
            week = moments[moments >= start]
            _, past = replay.by_load(moments[moments < start])
            peak = (level > bears)[(week // 3600).astype(int)]
            for name, found in (
                (f"fixed {replay.CEILING}", replay.fixed(week)),
                (f"adaptive {replay.FLOOR}:{replay.CEILING}", replay.by_load(week)[0]),
                ("the same, --anticipate", replay.anticipating(week, past, start)),
            ):
                first, kept = found.first_token, found.budget
                quantiles = [float(np.quantile(first, q)) for q in (0.5, 0.95, 0.99)]
                quantiles.append(float(np.quantile(first[peak], 0.95)))
                rows.setdefault(name, []).append([*quantiles, float(kept.mean()), float(kept[peak].mean())])
        for name, found_rows in rows.items():
            p50, p95, p99, in_peaks, kept_mean, kept_in_peaks = np.mean(found_rows, axis=0)
            times = f"{p50:.2f} / {p95:.2f} / {p99:.2f} | {in_peaks:.2f}"
            lines.append(f"| {shape} | {name} | {times} | {kept_mean:.0f} | {kept_in_peaks:.0f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="weeks of each shape, averaged (default: 3)")
    arguments = parser.parse_args(argv)
    print(error_table(arguments.seeds), budget_table(arguments.seeds), sep="\n\n")
    print(f"\nLoad average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores; no figure is a time of it.")


if __name__ == "__main__":
    main()
