"""What a choice in two parts would cost: the question's own vision tokens behind those that every question shares.

    python benchmarks/two_parts.py                      all questions of the demo, about ten minutes on one core
    python benchmarks/two_parts.py --questions 100

A prefix cache holds what stands before the first place at which two prompts differ, and MMTok's choice differs from
question to question. Here some tokens are chosen by the image alone and stand first, so that all questions about it
share them; the question's words add the others behind them, greedily, by the same objective over both. Both parts are
in reading order, and positions count on, as keys and values in a cache demand.

For every way to choose: right answers, those questions that go right or wrong beside MMTok in one part, the objective
that is reached of MMTok's, and how many tokens of a prompt another question about the same image finds read. Shared
vision tokens beside "one part" are those that stand before the first difference by chance.
"""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import mean

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from evaluation.in_process import InProcess, Scored
from evaluation.question_sets import SETS, Item, question_set, scene_of
from evaluation.records import Cell
from torch import Tensor
from tqdm import tqdm

from covervlm.kernels import coverage_affinity, greedy_max_coverage
from covervlm.server.core.generation import ImagePart, Message
from covervlm.server.demo import model_path
from covervlm.server.models.base import ImageTokens

WAYS: dict[str, tuple[int, int, bool]] = {
    "192, one part": (0, 192, True),
    "192, image alone": (192, 0, True),
    "128 + 64, in reading order": (128, 64, True),
    "128 + 64, behind each other": (128, 64, False),
    "64, one part": (0, 64, True),
    "64, image alone": (64, 0, True),
    "48 + 16, behind each other": (48, 16, False),
    "32 + 32, behind each other": (32, 32, False),
}
"""Tokens that the image alone chooses, those that the question adds, and whether all stand in reading order."""


def affinities(asker: InProcess, image: ImageTokens, question: str) -> tuple[Tensor, int]:
    """MMTok's affinity (rows, tokens), the question's words first, and how many words they are."""
    words = asker.adapter.question_embeddings(question)
    pruner = asker.pruners["mmtok"]
    return coverage_affinity(
        words[None],
        image.tokens[None],
        image.features[None],
        tau_text=pruner.tau_text,
        tau_vision=pruner.tau_vision,
        alpha=pruner.alpha,
    )[0], len(words)


def choose(affinity: Tensor, words: int, shared: int, own: int) -> tuple[Tensor, Tensor]:
    """Places of the shared tokens and of the question's own, ascending both."""
    nothing = torch.empty(0, dtype=torch.long)
    first = greedy_max_coverage(affinity[None, words:], [shared])[0][:shared] if shared else nothing
    second = nothing
    if own:
        free = torch.ones(affinity.shape[1], dtype=torch.bool).index_fill(0, first, False)
        # What the shared tokens cover already is no gain.
        rest = affinity if not shared else affinity.maximum(affinity[:, first].amax(1, keepdim=True))
        second = greedy_max_coverage(rest[None], [own], allowed=free[None])[0][:own]
    return first.sort().values, second.sort().values


def reached(affinity: Tensor, kept: Tensor) -> float:
    return float(affinity[:, kept].amax(1).sum(dtype=torch.float64))


def shared_start(one: Sequence[int], other: Sequence[int]) -> int:
    """Places at which two sequences are equal from their beginning on."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


class Asked:
    """What is known of every way after some questions."""

    def __init__(self) -> None:
        self.right: dict[str, dict[str, bool]] = defaultdict(dict)
        self.coverage: dict[str, list[float]] = defaultdict(list)
        self.shared: dict[str, list[int]] = defaultdict(list)

    def rows(self) -> Iterator[str]:
        for way, (first, second, _) in WAYS.items():
            plain = self.right[f"{first + second}, one part"]
            mine = self.right[way]
            better = sum(mine[key] and not plain[key] for key in plain)
            worse = sum(plain[key] and not mine[key] for key in plain)
            yield (
                f"| {way} | {100 * mean(mine.values()):.1f} | +{better} -{worse} | {mean(self.coverage[way]):.4f} | "
                f"{mean(self.shared[way]):.0f} |"
            )


def prompt(asker: InProcess, item: Item, image: ImageTokens, kept: Tensor, way: str) -> Scored:
    message = Message("user", (ImagePart(scene_of(item.set, item.seed).image, item.key), item.question))
    tokenizer = asker.adapter.chat.tokenizer
    answer = tokenizer(f" {item.answer}", add_special_tokens=False).input_ids
    answer_ids = torch.tensor([*answer, tokenizer.eos_token_id])
    embeddings, _ = asker.adapter.assemble(asker.adapter.tokenize([message]), [image], [kept])
    return Scored(item, Cell(way, len(kept)), torch.cat([embeddings, asker.adapter.embeddings(answer_ids)]), answer_ids)


@torch.inference_mode()
def measure(asker: InProcess, items: Sequence[Item]) -> Asked:
    asked = Asked()
    scenes: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        scenes[item.seed].append(item)
    for group in tqdm(scenes.values(), unit="scene"):
        image = asker.adapter.encode([asker.adapter.preprocess(scene_of(group[0].set, group[0].seed).image)])[0]
        orders: dict[str, list[list[int]]] = defaultdict(list)
        for item in group:
            affinity, words = affinities(asker, image, item.question)
            best: dict[int, float] = {}
            waiting: dict[int, list[Scored]] = defaultdict(list)
            for way, (shared, own, reading) in WAYS.items():
                first, second = choose(affinity, words, shared, own)
                kept = torch.cat([first, second])
                if reading:
                    kept = kept.sort().values
                best.setdefault(shared + own, reached(affinity, kept))
                asked.coverage[way].append(reached(affinity, kept) / best[shared + own])
                orders[way].append(kept.tolist())
                waiting[len(kept)].append(prompt(asker, item, image, kept, way))
            for batch in waiting.values():
                for key, cell, right, _ in asker.score(batch):
                    asked.right[cell.method][key] = right
        for way, kept_of in orders.items():
            asked.shared[way] += [shared_start(one, other) for one, other in combinations(kept_of, 2)]
    return asked


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=["standard", "hard"])
    parser.add_argument("--split", choices=["evaluation", "tuning"], default="evaluation")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    asker = InProcess(model_path(), ["mmtok"])
    for name in arguments.sets:
        started = time.perf_counter()
        items = question_set(name, arguments.questions, split=arguments.split)
        asked = measure(asker, items)
        print(f"\n{len(items)} questions about {name} scenes, {time.perf_counter() - started:.0f} s\n")
        print("| vision tokens | right % | beside one part | objective of one part's | vision tokens shared |")
        print("|---|---|---|---|---|")
        print("\n".join(asked.rows()), flush=True)
    print(f"\nLoad average {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
