"""Speed of the zero-shot arithmetic: InMaP against a line-by-line version of its specification, and OnZeta's latency.

    python benchmarks/zero_shot_speed.py                      50,000 images, 1,000 classes, 768 dimensions
    python benchmarks/zero_shot_speed.py --images 5000 --iterations 5
    python benchmarks/zero_shot_speed.py --whole              one whole fit at this size, to its early or last iteration
    python benchmarks/zero_shot_speed.py --whole --direct     then the line-by-line version, all iterations

Features are random around random class directions. The time of the arithmetic does not depend on their values, except
for the iteration at which a fit ends early, which only `--whole` shows.
"""

import argparse
import asyncio
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.classifiers import ranked
from covervlm.server.clip.methods.inmap import fit_vision_proxies, sinkhorn_labels
from covervlm.server.clip.methods.onzeta import OnlineZeroShot
from covervlm.server.clip.sessions import Sessions, SnapshotInterval
from covervlm.server.store import Store
from covervlm.server.store.database import Database


def random_space(images: int, classes: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Features (n, d) around class directions, and text proxies (d, K) near those.

    Noisy enough, at the default size, for about half of the images to lie nearer to another class's text.
    """
    generator = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(classes, dimensions, generator=generator), dim=1)
    labels = torch.randint(classes, (images,), generator=generator)
    features = torch.randn(images, dimensions, generator=generator).mul_(0.1)
    for part, indices in zip(features.split(4096), labels.split(4096), strict=True):
        part.add_(directions[indices])  # in parts, so that the peak of memory is not reached here
    text = directions + 0.1 * torch.randn(classes, dimensions, generator=generator)
    features.div_(torch.linalg.vector_norm(features, dim=1, keepdim=True))
    return features, normalize(text, dim=1).T.contiguous()


def transcribed_labels(features: Tensor, text: Tensor) -> Tensor:
    n, classes = len(features), text.shape[1]
    plan = torch.softmax(features @ text / 0.01, dim=1) / n
    for _ in range(20):
        plan = plan / plan.sum(dim=0, keepdim=True) / classes
        plan = plan / plan.sum(dim=1, keepdim=True) / n
    plan = plan * n
    best, index = plan.max(dim=1)
    sure = best > 0.6
    plan[sure] = 0
    plan[sure, index[sure]] = 1
    return plan


def transcribed_steps(
    features: Tensor, text: Tensor, labels: Tensor, iterations: int, tick: Callable[[], None]
) -> Tensor:
    proxies, rate, last = text, 10.0, float("inf")
    for _ in range(iterations):
        gradient = features.T @ (torch.softmax(features @ proxies / 0.04, dim=1) - labels)
        norm = float(gradient.norm())
        rate = rate / 2 if norm > last else rate
        last = norm
        proxies = normalize(proxies - rate / (len(features) * 0.04) * gradient, dim=0)
        tick()
    return proxies


class Ticks:
    """Seconds between calls, by the wall's clock or the processor's."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._times = [clock()]

    def __call__(self, *_: object) -> None:
        self._times.append(self._clock())

    @property
    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self._times, self._times[1:], strict=False)]


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def compare(features: Tensor, text: Tensor, iterations: int, rounds: int) -> None:
    """Both versions in turn, so that other work on the machine affects both; ours first, since memory peaks only grow.

    In core-seconds, which leave out the time that other programs took.
    """
    base, clock = resident_mib(), time.process_time
    labels: dict[str, list[float]] = {"ours": [], "direct": []}
    steps: dict[str, list[float]] = {"ours": [], "direct": []}
    for round_ in range(rounds):
        start = clock()
        ours = sinkhorn_labels(features @ text, in_place=True)
        labels["ours"].append(clock() - start)
        del ours
        ticks = Ticks(clock)
        proxies = fit_vision_proxies(features, text, iterations=iterations, tolerance=0, progress=ticks)
        steps["ours"] += ticks.seconds[1:]
        if round_ == 0:
            print(f"memory beyond the inputs: ours {peak_mib() - base:.0f} MiB", end="", flush=True)
        start = clock()
        direct = transcribed_labels(features, text)
        labels["direct"].append(clock() - start)
        ticks = Ticks(clock)
        reference = transcribed_steps(features, text, direct, iterations, ticks)
        steps["direct"] += ticks.seconds[1:]
        if round_ == 0:
            print(f", direct {peak_mib() - base:.0f} MiB")
        del direct
    same = ((features @ proxies).argmax(1) == (features @ reference).argmax(1)).float().mean()
    for what, seconds in (("20 Sinkhorn rounds", labels), ("one iteration", steps)):
        ours, theirs = statistics.median(seconds["ours"]), statistics.median(seconds["direct"])
        print(f"{what}: ours {ours:.2f}, direct {theirs:.2f} core-seconds, ratio {theirs / ours:.2f} (medians)")
    print(f"labels that agree after {iterations} iterations: {100 * float(same):.3f} %")
    print(f"2,000 iterations, extrapolated: ours {2000 * statistics.median(steps['ours']) / 60:.0f} core-minutes")


def whole(features: Tensor, text: Tensor, iterations: int, *, direct: bool) -> None:
    """One fit, labels and all, of at most so many iterations, in core-seconds, which leave out other programs' time.

    With `direct`, the line-by-line version afterwards: it never ends early, so its labels show what ending early costs.
    """
    base, began, ticks = resident_mib(), time.process_time(), Ticks()

    def progress(iteration: int, norm: float) -> None:
        ticks()
        if iteration == 1 or iteration % 100 == 0:
            spent = time.process_time() - began
            print(f"iteration {iteration}: gradient norm {norm:.4g}, {spent:.0f} core-seconds", flush=True)

    proxies = fit_vision_proxies(features, text, iterations=iterations, progress=progress)
    spent = time.process_time() - began
    print(f"one whole fit: {len(ticks.seconds)} iterations, {sum(ticks.seconds):.0f} s, {spent:.0f} core-seconds")
    print(f"memory beyond the inputs: {peak_mib() - base:.0f} MiB at the peak")
    labels = (features @ proxies).argmax(1)
    changed = (labels != (features @ text).argmax(1)).float().mean()
    print(f"labels that differ from those of the text proxies: {100 * float(changed):.2f} %", flush=True)
    if direct:
        began, ticks = time.process_time(), Ticks()
        reference = transcribed_steps(features, text, transcribed_labels(features, text), iterations, ticks)
        theirs = time.process_time() - began
        print(f"line by line: {iterations} iterations, {sum(ticks.seconds):.0f} s, {theirs:.0f} core-seconds")
        print(f"memory beyond the inputs: {peak_mib() - base:.0f} MiB at the peak")
        same = (labels == (features @ reference).argmax(1)).float().mean()
        print(f"ratio {theirs / spent:.2f}; labels that agree: {100 * float(same):.3f} %")


def observe(classes: int, dimensions: int, images: int = 1000) -> None:
    features, text = random_space(images, classes, dimensions)
    stream, wall, core = OnlineZeroShot(text, images), Ticks(), Ticks(time.process_time)
    for feature in features:
        stream.observe(feature)
        wall()
        core()
    tell(f"OnZeta observe, {torch.get_num_threads()} threads", wall, core)


async def observe_in_session(classes: int, dimensions: int, images: int = 1000) -> None:
    """The same through the server's sessions: lock, thread, idempotency key, ranking, and snapshots."""
    features, text = random_space(images, classes, dimensions)
    names = [f"class {i}" for i in range(classes)]
    store = Store(Database(None))
    sessions = Sessions(store, SnapshotInterval())
    about = {"classes": names, "horizon": images, "parameters": {}, "fingerprint": ""}
    session = (await sessions.create("benchmark", about, text))["id"]
    wall, core = Ticks(), Ticks(time.process_time)
    for i in range(images):
        await sessions.observe(
            "benchmark",
            session,
            features[i : i + 1],
            lambda predictions: {"top": ranked(predictions[0].combined[None], names, 5)},
            key=str(i),
            digest="",
        )
        wall()
        core()
    await sessions.stop()
    store.close()
    tell("the same through a session with keys and snapshots", wall, core)


def tell(what: str, wall: Ticks, core: Ticks) -> None:
    ordered = sorted(1000 * s for s in wall.seconds)
    last, busy = ordered[int(0.99 * len(ordered))], 1000 * statistics.median(core.seconds)
    print(
        f"{what}: median {statistics.median(ordered):.2f} ms ({busy:.2f} ms of a core), 99th percentile {last:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--iterations", type=int, help="8 of each version in turn; 2,000 with --whole")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="instead of the comparison, one fit with early ending")
    parser.add_argument("--direct", action="store_true", help="with --whole: then all iterations of the direct version")
    parser.add_argument("--observe", action="store_true", help="OnZeta only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads")
    print(f"{options.images} images, {options.classes} classes, {options.dimensions} dimensions")
    if not options.observe:
        features, text = random_space(options.images, options.classes, options.dimensions)
        if options.whole:
            whole(features, text, options.iterations or 2000, direct=options.direct)
            return
        compare(features, text, options.iterations or 8, options.rounds)
        del features
    for threads in dict.fromkeys((1, options.threads)):
        torch.set_num_threads(threads)
        observe(options.classes, options.dimensions)
        asyncio.run(observe_in_session(options.classes, options.dimensions))


if __name__ == "__main__":
    main()
